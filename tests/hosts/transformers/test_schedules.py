"""Losses that change during a run: each step against float64, the clock in every place that asks for it, the log."""

from __future__ import annotations

import pytest
import torch
from support import by_hand, tiny, training

from dft_plugin import Clock, Facts, activate, attach, token_loss
from dft_plugin.errors import ClockError, ConflictError
from dft_plugin.objectives import DFT, NLL

pytestmark = pytest.mark.host

RAMP = {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 0.5}}
FIRST = {"name": "dft", "first": {"name": "nll", "for": 2}}
BOTH = {"name": "dft", "alpha": {"from": 0.5, "to": 1.0, "until": 3}, "first": {"name": "nll", "for": 0.25}}
CHANGING = {"name": "thresholded", "threshold": 0.02, "first": {"name": "nll", "for": 0.5}}


def powers(*alphas):
    """-p ** alpha log p, over the tokens, with an alpha for each step."""

    def formula(logp, sequence, step):
        return -((alphas[step] * logp.detach()).exp()) * logp, torch.ones_like(logp)

    return formula


def kept_later(logp, sequence, step):
    return powers(0, 0)(logp, sequence, step) if step < 2 else by_hand.above(0.02)(logp, sequence, step)


RUNS = {
    "ramp": (RAMP, powers(0, 0.5, 1, 1), [0, 0.5, 1, 1]),
    "first": (FIRST, powers(0, 0, 1, 1), [None] * 4),
    "both": (BOTH, powers(0, 2 / 3, 5 / 6, 1), [None, 2 / 3, 5 / 6, 1]),
    "changing": (CHANGING, kept_later, [None] * 4),
}


def trainer(out, size=4, steps=1, **changes):
    given = {"max_steps": 4, "learning_rate": by_hand.RATE, "gradient_accumulation_steps": steps, **changes}
    return training.trainer(out, per_device_train_batch_size=size, **given)


def alphas(made, prefix=""):
    entries = [entry for entry in made.state.log_history if f"{prefix}dft/loss" in entry]
    return [entry.get(f"{prefix}dft/alpha") for entry in entries]


def approx(values, **tolerance):
    return [value if value is None else pytest.approx(value, **tolerance) for value in values]


def close(made, expected):
    ours = {name: value.double() for name, value in training.trained(made.model).items()}
    assert tiny.max_gap(ours, expected.weights) < expected.tolerance
    assert training.losses(made) == pytest.approx(expected.losses, rel=1e-5)


@pytest.mark.parametrize(("size", "steps"), [(4, 1), (1, 4)])
@pytest.mark.parametrize("name", RUNS)
def test_each_step_has_the_loss_of_its_time(name, size, steps, tmp_path):
    loss, formula, logged = RUNS[name]
    made = trainer(tmp_path, size, steps)
    rows = by_hand.watched(made)
    activate(made, loss)
    made.train()
    close(made, by_hand.trained(tiny.llama(), by_hand.in_steps(rows, 4, 4), formula))
    assert alphas(made) == approx(logged)


def test_a_share_of_epochs_is_one_of_their_steps(tmp_path):
    made = trainer(tmp_path, 4, 2, max_steps=-1, num_train_epochs=4)
    activate(made, RAMP)
    made.train()
    assert made.state.max_steps == 12
    assert alphas(made) == pytest.approx([min(1, step / 6) for step in range(12)])


def test_a_resumed_run_goes_on_where_it_was(tmp_path):
    straight = trainer(tmp_path / "a", max_steps=6)
    activate(straight, RAMP)
    straight.train()
    begun = trainer(tmp_path / "b", max_steps=6, save_strategy="steps", save_steps=2)
    activate(begun, RAMP)
    begun.train()
    resumed = trainer(tmp_path / "b", max_steps=6)
    activate(resumed, RAMP)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert tiny.max_gap(training.trained(straight.model), training.trained(resumed.model)) < 1e-7
    assert alphas(resumed) == alphas(straight) == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])


def test_a_log_of_several_steps_says_the_last(tmp_path):
    made = trainer(tmp_path, logging_steps=2)
    activate(made, RAMP)
    made.train()
    assert alphas(made) == pytest.approx([0.5, 1])


def test_an_evaluation_has_the_loss_of_its_time(tmp_path):
    made = trainer(tmp_path, eval_strategy="steps", eval_steps=1)
    activate(made, RAMP)
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    assert (before["eval_dft/alpha"], after["eval_dft/alpha"]) == (0, 1)
    assert alphas(made, "eval_") == pytest.approx([0.5, 1, 1, 1, 1])
    assert alphas(made) == pytest.approx([0, 0.5, 1, 1]), "an evaluation in between changes nothing"
    rows = training.rows(10, seed=1)
    for found, model, alpha in ((before, tiny.llama(), 0), (after, made.model, 1)):
        with torch.no_grad():
            loss, _ = by_hand.scored(model.double().eval(), rows, powers(alpha))
        assert found["eval_dft/loss"] == pytest.approx(loss.mean().item(), rel=1e-5)
    assert before["eval_dft/loss"] == pytest.approx(before["eval_dft/nll"])


def test_the_step_that_ends_the_first_objective_is_the_first_of_the_second(tmp_path):
    made = trainer(tmp_path, eval_strategy="steps", eval_steps=1)
    activate(made, FIRST)
    made.train()
    weights = [entry["dft/mean_weight"] for entry in training.train_logs(made)]
    assert [weight == 1 for weight in weights] == [True, True, False, False]
    evaluated = [entry["eval_dft/mean_weight"] for entry in made.state.log_history if "eval_loss" in entry]
    assert [weight == 1 for weight in evaluated] == [True, False, False, False]


class TestWhatIsSaid:
    @pytest.mark.parametrize(
        ("loss", "said"),
        [
            (RAMP, "dft(alpha=0->1 until 50 % of the run, floor=0.0)"),
            (FIRST, "dft(alpha=1.0, floor=0.0) after nll until step 2"),
            (BOTH, "dft(alpha=0.5->1 until step 3, floor=0.0) after nll until 25 % of the run"),
        ],
    )
    def test_at_the_start_and_of_the_attachment(self, loss, said, tmp_path, capsys):
        attachment = activate(trainer(tmp_path), loss)
        assert f"dft: loss {said} is on for LlamaForCausalLM" in capsys.readouterr().err
        assert repr(attachment).startswith(f"<Attachment of {said} to LlamaForCausalLM")

    def test_the_same_schedule_again_changes_nothing_and_another_does(self, tmp_path, capsys):
        made = trainer(tmp_path)
        first = activate(made, RAMP)
        assert activate(made, dict(RAMP)) is first
        assert activate(made, "dft") is not first
        assert activate(made, {**RAMP, "alpha": {**RAMP["alpha"], "until": 0.4}}).plan.schedule is not None

    @pytest.mark.parametrize(
        ("loss", "weighs"),
        [
            ({"name": "dft", "alpha": {"from": 1.0, "to": 0.0, "until": 0.5}}, True),
            ({"name": "nll", "first": {"name": "dft", "for": 0.5}}, True),
            ({"name": "dft", "alpha": 0.0, "first": {"name": "nll", "for": 0.5}}, False),
            (FIRST, True),
            ({"name": "dft", "alpha": {"from": 0.0, "to": 0.5, "until": 4}}, True),
            ("eaft", True),
            ("thresholded", True),
        ],
    )
    def test_what_a_choice_by_the_loss_means(self, loss, weighs, tmp_path, capsys):
        activate(trainer(tmp_path, metric_for_best_model="eval_loss", eval_strategy="steps"), loss)
        assert ("the weighted loss" in capsys.readouterr().err) == weighs

    def test_a_weak_prior_is_told_of_once_tokens_are_weighed(self, tmp_path, caplog):
        made = trainer(tmp_path)
        activate(made, FIRST)
        told = []
        made.add_callback(Told(caplog, told))
        made.train()
        assert told == [0, 0, 1, 1]


class Told(training.transformers.TrainerCallback):
    """Counts the warnings by each log."""

    def __init__(self, caplog, told):
        self.caplog, self.told = caplog, told

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.told.append(self.caplog.text.count("mean probability is"))


class TestOwnLoops:
    def test_without_a_clock_it_is_refused(self):
        model = tiny.llama().train()
        attach(model, RAMP)
        with pytest.raises(ClockError, match=r"set `attachment\.clock = dft_plugin\.Clock\("):
            model(**tiny.batch())

    @pytest.mark.parametrize("step", [0, 1, 4])
    def test_with_a_clock_it_has_the_loss_of_its_time(self, step):
        model, batch = tiny.llama().eval(), tiny.batch()
        attachment = attach(model, RAMP)
        attachment.clock = Clock(step, 4, 0.0)
        found = model(**batch).loss.item()
        attachment.detach()
        attach(model, DFT(alpha=min(1.0, step / 2)))
        assert found == pytest.approx(model(**batch).loss.item(), rel=1e-6)

    def test_the_functions_are_told_by_facts(self):
        torch.manual_seed(0)
        logits, labels = torch.randn(7, 11), torch.randint(0, 11, (7,))
        with pytest.raises(ClockError, match=r"facts=dft_plugin\.Facts\(clock=\.\.\.\)"):
            token_loss(logits, labels, objective=FIRST)
        for step, same in ((0, NLL()), (1, NLL()), (2, DFT())):
            facts = Facts(clock=Clock(step, 10, 0.0))
            found = token_loss(logits, labels, objective=FIRST, facts=facts)
            assert found.item() == pytest.approx(token_loss(logits, labels, objective=same).item())


def test_a_first_loss_that_outlasts_the_run_is_refused_before_anything_is_trained(tmp_path):
    trainer = training.trainer(tmp_path, max_steps=3)
    before = training.trained(trainer.model)
    activate(trainer, {"name": "dft", "first": {"name": "nll", "for": 3}})
    with pytest.raises(
        ConflictError, match="`first` holds until step 3 and the run has 3 steps, so that dft would never be"
    ):
        trainer.train()
    assert tiny.max_gap(before, training.trained(trainer.model)) == 0


def test_a_ramp_that_outlasts_the_run_is_refused_before_anything_is_trained(tmp_path):
    trainer = training.trainer(tmp_path, max_steps=3)
    before = training.trained(trainer.model)
    activate(trainer, {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 4}})
    with pytest.raises(ConflictError, match="until step 4 and the run has 3 steps, so that it would never get to 1"):
        trainer.train()
    assert tiny.max_gap(before, training.trained(trainer.model)) == 0


def test_a_run_that_is_resumed_with_fewer_steps_is_at_its_end(tmp_path):
    begun = trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=4)
    activate(begun, RAMP)
    begun.train()
    resumed = trainer(tmp_path, max_steps=3)
    activate(resumed, RAMP)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.evaluate()["eval_dft/alpha"] == 1
