"""The page of the family: one table, and a section for each loss, from what the objectives say of themselves."""

from __future__ import annotations

from collections.abc import Iterator

from dft_plugin.cli.explaining import Explanation, explain
from dft_plugin.config.plugins import build_catalogue, build_manager

HEAD = """\
# Losses

Made by `python docs/generate.py` from the objectives; `dft losses NAME` says the same of each, and of those that
plugins bring.

```yaml
loss: eaft
```

All but `asft` and `gift` are likelihood with a weight: the loss of a target token is `-w * log p`, and w is a constant
of the step (no gradient flows through it). p is the model's probability of the target, H an entropy in nats, sg the
stop-gradient. What differs is whom they trust: the data (`nll`), the model (`dft`), a frozen reference (`prift`).

Not sure? [`dft probe`](probe.md) looks at your data before you train. Mean probability above 0.5: `dft` and its kin.
Below 0.1: `nll`. Then [compare](compare-honestly.md#the-numbers) what was trained; no one number of the log decides.
[When not to use it](when-not-to-use.md) says more.

`log: [top1, entropy]` adds `dft/top1` (token accuracy) and `dft/entropy` to the log, for every loss, in every host.
TRL's own `mean_token_accuracy` and `entropy` are the same numbers where a log is of one batch: `logging_steps: 1`
without accumulation, or an evaluation of one batch. Of several, TRL logs the mean of their means, in which a token of
a short batch counts more; ours count each token once, so that they are the same in any split.

Any number below may change during the run, another loss may come first, some tokens may always be learned, and the
data may bring factors: [settings](settings.md). One of your own: [write an objective](objectives.md).
"""

SHIPPED = {
    "dft": "TRL 1.16 (`loss_type: dft`), LLaMA-Factory 0.9.5 (`use_dft_loss`), ms-swift 4.6, Liger",
    "nll": "all, as their usual loss",
    "eaft": "LLaMA-Factory 0.9.5 (`use_eaft_loss`: `normalizer: 3`), Axolotl 0.19 (`use_eaft`: `normalizer: 1`)",
    "chord_phi": "ms-swift 4.6, beside GRPO",
    "asft": "LLaMA-Factory 0.9.5 (`use_asft_loss`: each micro-batch by its own mean)",
}
"""Which hosts ship it, as read in their source."""

NOTES = {
    "dft": "`alpha: {from: 0.0, to: 1.0, until: 0.3}` is SFT first, then DFT.",
    "eaft": "At most 1 with the paper's divisor, and up to 3 with Axolotl's: that is another learning rate.",
    "idft": "The paper raises `strength` from 0 to 1 between 20 and 30 % of the steps; near to it: "
    "`strength: {from: 0.0, to: 1.0, until: 0.3}`.",
    "psft": "`old_logp` must be in the data: `dft reference CONFIG` [computes it](reference.md).",
    "thresholded": "`profit` is the same with another threshold, divided by all target tokens.",
    "iw_sft": "With LoRA the reference is the base model, its adapters off: no second copy.",
    "prift": "With LoRA the reference is the base model, its adapters off: no second copy.",
    "asft": "With LoRA the reference is the base model, its adapters off: no second copy.",
}


def page() -> str:
    """Write the page."""
    catalogue = build_catalogue(build_manager(third_party=False))
    every = [explain(entry) for entry in catalogue.objectives.values()]
    head = "| loss | weight of a token | helps with | costs | source | shipped by |\n" + "| --- " * 6 + "|"
    table = "\n".join([head, *map(_row, every)])
    return "\n".join([HEAD, table, "", *map(_section, every)])


def _row(one: Explanation) -> str:
    source = one.source.partition(";")[0]
    cells = [f"[`{one.name}`](#{one.name})", one.summary, one.helps, _cost(one), source, SHIPPED.get(one.name, "-")]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _cost(one: Explanation) -> str:
    """Say it in a cell."""
    text = " ".join(one.cost)
    said = {
        "an entropy": "entropy",
        "a sum over the vocabulary": "sum of p squared",
        "the top of each row": "`top",
        "a reference pass": "reference",
        "a column of the data": "`old_logp`",
        "a second sweep over a trained head": "second sweep",
        "a divisor known at the end": "scaled once more",
    }
    return ", ".join(words for words, sign in said.items() if sign in text) or "nothing"


def _section(one: Explanation) -> str:
    return "\n".join(_lines(one))


def _lines(one: Explanation) -> Iterator[str]:
    yield f"## `{one.name}`\n"
    yield from (f"{paragraph}\n" for paragraph in one.about)
    if one.name in NOTES:
        yield f"{NOTES[one.name]}\n"
    yield f"- Helps with: {one.helps}."
    yield f"- Costs: {'; '.join(one.cost) or 'what plain SFT costs with the same kernel'}."
    yield f"- Divided by: {one.divisor}."
    if one.logs:
        yield f"- Logs: {', '.join(f'`{key}`' for key in one.logs)}."
    yield f"- Source: {one.source}.\n"
    if one.options:
        yield "| option | allowed | default | |\n| --- | --- | --- | --- |"
        for option in one.options:
            description = option.description.replace("|", chr(92) + "|")
            yield f"| `{option.name}` | {option.allowed} | `{option.shown}` | {description} |"
        yield ""
    yield "```yaml\n" + "\n".join(one.examples[-1:]) + "\n```\n"
