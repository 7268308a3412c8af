"""What the log of a verl run says of the loss: in training, in the validation, and of what changes meanwhile."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("verl")

import torch
from support import counted, oracle, tiny
from support.verl_runs import DFT, ON, train, words

from dft_plugin.errors import ConflictError
from dft_plugin.objectives.adjusted import EXEMPT_SHARE
from dft_plugin.runs import logs

pytestmark = pytest.mark.host

VALIDATED = {**DFT, "data.val_files": "held-out.parquet", "trainer.test_freq": 2}


def logp_of(model, sequences):
    """log p of all targets, in float64."""
    found = []
    for ids, mask in sequences:
        logits = model(input_ids=ids[None]).logits[0, :-1].detach()
        found.append(oracle.log_probabilities(logits[mask[1:]], ids[1:][mask[1:]]))
    return torch.cat(found)


def test_a_run_says_what_is_on_and_logs_what_it_comes_to(home, capfd):
    held_out = []

    def watch(trainer):
        infer = trainer.engine.infer_batch

        def infer_batch(data, loss_function=None):
            held_out.append(
                [
                    (ids, mask.bool())
                    for ids, mask in zip(data["input_ids"].unbind(), data["loss_mask"].unbind(), strict=True)
                ]
            )
            return infer(data, loss_function)

        trainer.engine.infer_batch = infer_batch

    run = train(*words(**VALIDATED, **{"data.micro_batch_size_per_gpu": 4}), prepare=watch)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("dft: loss")]
    assert line == f"{ON}: weighs the log p that verl makes; replaces verl's sft_loss"

    logp = logp_of(tiny.llama().double().eval(), run.steps[0])
    p, first = logp.exp(), run.training_logs[0]
    eos = torch.cat([ids[1:][mask[1:]] for ids, mask in run.steps[0]]) == 2
    assert first["dft/loss"] == pytest.approx(first["train/loss"], rel=1e-6)
    assert first["dft/nll"] == pytest.approx(-logp.mean().item(), rel=1e-6)
    assert first["dft/mean_prob"] == pytest.approx(p.mean().item(), rel=1e-6)
    assert first["dft/tokens"] == len(logp)
    assert first["dft/eos_prob"] == pytest.approx(p[eos].mean().item(), rel=1e-6)
    assert not [key for key in first if key.startswith("dft/sums")]
    lines = [json.loads(line) for line in (home / "log.jsonl").read_text().splitlines()]
    written = [{"step": line["step"], **line["data"]} for line in lines]
    counted.assert_agree(home / "checkpoints", written)
    counted.assert_agree(home / "checkpoints", written, "val", "val/dft/")
    (home / "log.jsonl").rename(home / "checkpoints" / "log.jsonl")
    read = logs.load(home / "checkpoints")
    assert read.series("dft/nll")[0] == (1, pytest.approx(first["dft/nll"]))
    assert read.series("eval_dft/nll") == [(2, pytest.approx(run.validation["val/dft/nll"]))]
    assert {one.of for one in read.histograms} == {"training", "val"}

    model = tiny.llama().double().eval()
    model.load_state_dict({name: w.double() for name, w in run.after.items()})
    parts = [logp_of(model, part) for part in held_out]
    logp, said = torch.cat(parts), run.validation
    assert said["val/dft/nll"] == pytest.approx(-logp.mean().item(), rel=1e-6)
    assert said["val/dft/loss"] == pytest.approx(-(logp.exp() * logp).mean().item(), rel=1e-6)
    assert said["val/dft/tokens"] == len(logp)
    # verl's own figure is a mean of batches, whatever they hold.
    means = [-(part.exp() * part).mean() for part in parts]
    assert said["val/loss"] == pytest.approx(torch.stack(means).mean().item(), rel=1e-6)
    assert said["val/loss"] != pytest.approx(said["val/dft/loss"], rel=1e-4)


def test_a_schedule_goes_by_the_steps_of_the_run(home, capfd):
    ramp = {"+loss.alpha": "{from:0.0,to:1.0,until:2}", "+loss.first": "{name:nll,for:1}"}
    three = {"data.train_batch_size": 6, "data.micro_batch_size_per_gpu": 3, "trainer.total_training_steps": 4}
    run = train(*words(**ramp, **three))
    losses = [(entry["train/loss"], entry["dft/nll"], entry.get("dft/alpha")) for entry in run.training_logs]
    assert [alpha for _, _, alpha in losses] == [None, 0.5, 1.0, 1.0]
    assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-6), "nll at first"
    assert all(loss < 0.5 * nll for loss, nll, _ in losses[1:])
    said = capfd.readouterr().err
    assert "dft: loss: nll until step 1, dft(alpha=0->1 until step 2, floor=0.0) from here on" in said


def test_a_resumed_run_goes_on_with_its_schedule(home):
    ramp = {"+loss.alpha": "{from:0.0,to:1.0,until:4}", "trainer.total_epochs": 2, "trainer.total_training_steps": 5}
    whole = train(*words(**ramp))
    kept = {**ramp, "trainer.resume_mode": "auto", "trainer.default_local_dir": "kept"}

    def stop_after_saving(trainer):
        plain = trainer.ckpt_handler.save_checkpoint

        def save_checkpoint(step):
            plain(step)
            raise InterruptedError

        trainer.ckpt_handler.save_checkpoint = save_checkpoint

    with pytest.raises(InterruptedError):
        train(*words(**kept, **{"trainer.save_freq": 2}), prepare=stop_after_saving)
    rest = train(*words(**kept))
    assert [entry["dft/alpha"] for entry in rest.training_logs] == [0.5, 0.75, 1.0]
    assert tiny.max_gap(whole.after, rest.after) < 1e-7


def test_a_schedule_that_would_never_hold_is_refused_before_the_first_step(home):
    with pytest.raises(ConflictError, match=r"goes from 0 to 1 until step 50 and the run has 2 steps"):
        train(*words(**{"+loss.alpha": "{from:0.0,to:1.0,until:50}"}))


def test_tokens_are_named_by_words(home, capfd):
    plain = train(*words(**DFT, **{"trainer.total_training_steps": 1}))
    always = train(*words(**{"+loss.always_learn": "[eos]", "trainer.total_training_steps": 1}))
    assert "always learned: 1 token (eos `</s>`)" in capfd.readouterr().err
    logp = logp_of(tiny.llama().double().eval(), always.steps[0])
    eos = torch.cat([ids[1:][mask[1:]] for ids, mask in always.steps[0]]) == 2
    expected = torch.where(eos, -logp, -logp.exp() * logp).mean().item()
    (entry,) = always.training_logs
    assert entry["train/loss"] == pytest.approx(expected, rel=1e-6)
    assert entry["train/loss"] > 2 * plain.training_logs[0]["train/loss"]
    assert entry[f"dft/{EXEMPT_SHARE}"] == pytest.approx(eos.double().mean().item())
