"""The words of docs/evidence.md. What the rows say is put in by `page`; nothing here depends on how they fall."""

PAGE = """\
# What does the loss do to a model?

Made by `python -m evidence page` from the runs in `evidence/rows/`; every number and picture below is.

The paper reports large gains of DFT over SFT; users also report that it was worse for them. Both can be true: DFT
learns what the model already finds likely. So this study turns two dials, what a small model knows beforehand and how
good the demonstrations are, and trains the same model with one loss after the other.

{so_far}

## In short

{in_short}

The cells were chosen so that claims may break; how many break is no measure of how often they do on real data.

## What was done

Models of 0.45 million parameters are pre-trained on sums with carries, letters to reverse, digits to sort and facts;
then each is fine-tuned on 2,000 demonstrations for 300 steps of 32 rows. An answer is *right* if its result is,
in whatever form; sums are asked 200 times, so that half a point is one sum, facts 100 times. *EAFT* (arXiv 2601.02151)
weighs a token by the model's entropy; *alpha 0.5* by the root of p, *floor 0.1* by p, and by 0.1 at least.

What the cells are (a cell: what a model knows, and what it is shown):

- *task and style known*: the model worked out sums in four styles beforehand, and is shown one of these.
- *style unseen*: it knows sums, and is shown a way to write them down that it never saw. *style rarely seen*: it saw
  that way in 2 % of its sums. *new tokens*: that way has characters that it never saw.
- *half learned*, *barely learned*: its pre-training was a quarter as long, or less than a tenth.
- *new facts*: names with three letters each to know by heart. *facts contradicted*: names that it knows, with other
  letters.
- *answers never ended*: the token that ends an answer was not in its pre-training.
- *40% wrong*: that share of the demonstrations has one wrong digit that is carried on to the answer, or a wrong value
  of a fact. *the same mistake*: the wrong digit is always the last one of the result, one too large.

## The main question: is alpha 0.5 ever worse?

The hypothesis was [written down](../evidence/README.md) before the first run: *`loss: {{name: dft, alpha: 0.5}}` is
in no cell worse than the better of SFT and DFT by more than half a point.* It is *broken* in a cell where the 95 %
interval of the difference lies below -0.5 points, and *holds* where the interval lies above; else the cell *does not
decide*. Where none of the three reaches 1 %, *none learns*. With so many cells one in forty breaks by chance if all
are exactly at the limit.

{hypothesis}

Differences in longer problems may be due to the rates that the losses got: see [learning rates](#learning-rates).

{beside}

Right answers in %, greedy, with 95 % intervals over seeds:

{greedy}

Sampled at temperature 1:

{sampled}

{ends}

The same question about two others:

{others}

## Does the mean probability before training predict it?

The rule of thumb (arXiv 2510.00526): above 0.5 DFT wins, below 0.1 SFT does, between them it hardly matters.

{by_probability}

Where DFT crosses SFT, sampled at temperature 1, of cells in which they are more than half a point apart:

{crossing_line}

{crossing}

## Do the model's own answers predict it?

DFT weighs what the model would say. So ask it before training, sampled at temperature 1: in what share of the
questions does it answer as it would be shown, in that very form (*own answers*)? The rule, [written down after seed
1](../evidence/README.md) and tested on the other seeds: below 1 % take SFT, else DFT.

{by_own_answers}

On all seeds, seed 1 among them, from which it was made:

{by_own_answers_seen}

{foretold}

## Does following `dft probe` pay?

[`dft probe`](probe.md) looked at each cell before training, and its advice was taken. Lost are the points by which the
best of the losses of the full grid was better there; a loss that is always taken is compared with the same best. The
advice was made with these cells in view, those of seed 1 above all: on other data it is to be tried.

{following}

{advised}

## Is it a matter of temperature?

DFT sharpens what is likely already. Where it is more than half a point above SFT at temperature 1:

{temperature}

{temperatures}

{temperature_table}

## Does it know more, or just say it more confidently?

With many samples of a question, what counts is whether a right answer is among them at all (pass@k, arXiv 2107.03374).

{passes}

## What else changes

Means over seeds, at three telling points (a strong prior, a weak one, new facts; 40 % wrong). The error of calibration
(arXiv 1706.04599, 15 bins) and the entropy are those of the tokens of right answers; the distance is that of the
weights, by the norm of the base model's; the embedding, which is the head, too, counts twice.

{besides}

## The rest of the family

Greedy / sampled at temperature 1, at the telling points. `psft` is not among them: it wants a column that is computed
beforehand.

{family}

## The probabilities before and after

Figure 2 of the paper, for demonstrated tokens, wrong ones among them.

{probabilities}

## On a real model

SmolLM2-135M-Instruct, trained by `dft train` in TRL for 150 steps of 8 rows, at 3e-4 with LoRA and 5e-5 without for
every loss; greedy / sampled at temperature 1. 150 questions each, so that one run is right to within eight points.
*By Axolotl*, *by LLaMA-Factory*: one run repeated with a config of that host.

{real}

## Trained on answers of its own

The paper's offline setting in miniature. A model answers 256 sums eight times each, a program says which answers are
right, and it is trained on these. All methods sample 2,048 answers and draw gradients from 2,048 (64 steps of 32),
by AdamW with a cosine; iterated methods begin both anew in each round, and TRL's trainers decay no norms and biases:

- *RFT*: SFT on the right answers (arXiv 2308.01825). *DFT*, *alpha 0.5*: these losses on the same answers.
- *iterated*: in four rounds, each of a quarter of the questions and steps, sampled from the model as it is by then.
- *DPO*: TRL's `DPOTrainer` on pairs of a right and a wrong answer to the same question, from the same samples.
- *GRPO*, *RLOO*: TRL's trainers, which sample as they go; 1 for a right answer that ends, 0 otherwise. TRL's defaults,
  the rate tuned.
- *PPO* is missing: TRL 1.16 has no trainer for it, not in its experimental part either; none was written for this.

*Well learned* is a model of the study, *less learned* one after three quarters of its pre-training.
{offline_so_far}

{offline}

Supposed [beforehand](../evidence/README.md), with the words of the main question (*holds*: the interval lies above
-0.5 points):

{offline_supposed}

The rates, chosen by the same rule in the first cell, with a seed that is not reported:

{offline_rates}

What this is not: long answers, a large model, or a reward that can be gamed. One rate serves both cells, and where
nothing right is sampled, nothing is learned by any of them.

## Learning rates

Chosen by [the same rule](../evidence/README.md) for each loss in each group of cells, with a seed that is not
reported.

{rates}

The rate changes what is not trained, too: longer sums and other tasks. Losses that got different rates are not alike
there, and [the runs that chose](evidence-rates.md) show how much of a difference may be the rate's.

## Why it comes out like this

The gradient of `-w log p` with w = sg(p^a) is that of (1 - p^a) / a. That is the generalised cross-entropy of
arXiv 1805.07836 with q = a, made for wrong labels seven years before DFT: q 0 is cross-entropy, q 1 the mean absolute
error, which is robust to wrong labels and known to underfit, and its authors took 0.7. So DFT is the end of a scale
whose middle was recommended for noisy labels, and `alpha` is where one stands on it.

## What carries over, and what may not

- *May carry over*: signs and orders that follow from the gradient alone, as that a token near p = 0 is hardly learned
  by DFT, and that a rare mistake is hardly learned either.
- *May not*: sizes, and where the lines cross. These models have 0.45 million parameters, tasks with one right answer,
  and an alphabet for a vocabulary. A large model has many ways to say the same thing, and its prior on a new data set
  is a mixture of all the cells above.
- *Need not*: that DFT is lost where the model never gives a demonstrated answer itself. A small model cannot carry
  over to a new form what it can do in another; a large one can, and gives no long answer again word for word anyway.
  Compare the own answers of the [real model](#on-a-real-model) with what DFT came to there.
- *Is not looked at*: long answers, chat, preferences, several epochs over large data, LoRA.

## Limits

- Wrong demonstrations are made by a program; people err in other ways.
- All runs are of 300 steps of 32 rows. With more steps a loss that was slow here may arrive.
- One learning rate serves all cells of a group; it was chosen at 40 % wrong demonstrations.
- A base model that is not kept is trained anew, and on another processor it is the same only up to rounding. Rows
  name theirs (`base`); of the older ones, losses in the same cell may be trained from two that differ.
- Each seed has a base model of its own, so that the intervals hold for other base models of this kind, not for other
  kinds. Problems of the tests are the same in all runs.

## Do it again

    pip install -e .
    python -m evidence run        # resumes; about twenty hours on one core; two processes share the work
    python -m evidence page
    python -m evidence again "core | style unseen, 40% wrong | DFT | 0.001 | 1"    # one run beside its row: minutes

In a row, `taught@0` is the share of right answers, greedy (`@1`: sampled at temperature 1), `form@0` of those that are
word for word as demonstrated, `longer@0` of sums with a digit more, `new@0` of the facts that are new.
"""

RATES_PAGE = """\
# The runs that chose the learning rates

Made by `python -m evidence page`. One seed, in no other table of [the study](evidence.md); the rule stands in
[evidence/README.md](../evidence/README.md). Right answers in %; the distance is that of the weights to the base's.

{tried}
"""
