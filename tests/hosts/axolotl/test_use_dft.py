"""What the `use_dft` of Axolotl 0.20 and newer does otherwise than `loss: dft`: the table."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("axolotl")

from support.axolotl_runs import SAVED, TWO_RANKS, command, history, prepare, since, train, write_config

pytestmark = [pytest.mark.host, pytest.mark.newest, since("0.20")]

OWN = {"use_dft": True, "drop": ["loss", "plugins"]}


def test_one_batch_in_one_process_is_the_same(home):
    ours, theirs = train(write_config(home, max_steps=1)), train(write_config(home, **OWN, max_steps=1))
    assert theirs.logs[0]["loss"] == pytest.approx(ours.logs[0]["loss"], rel=1e-5)
    assert any(key.startswith("dft/") for key in ours.logs[0])
    assert not any(key.startswith("dft/") for key in theirs.logs[0])
    # Of a loss that is no likelihood.
    assert theirs.logs[0]["ppl"] == pytest.approx(math.exp(theirs.logs[0]["loss"]), rel=1e-3)
    assert ours.logs[0]["ppl"] > 100


@pytest.mark.parametrize(("key", "whole"), [("loss", False), ("use_dft", True)])
def test_whether_logits_of_all_positions_are_made(key, whole, home):
    rows = []
    _, trainer = prepare(write_config(home, max_steps=2, **(OWN if key == "use_dft" else {})))
    head, seen = trainer.model.lm_head, []
    plain = head.forward
    head.forward = lambda hidden: rows.append(hidden[..., 0].numel()) or plain(hidden)
    step = trainer.training_step

    def training_step(model, inputs, *args, **kwargs):
        rows.clear()
        result = step(model, inputs, *args, **kwargs)
        seen.append((max(rows, default=0), inputs["input_ids"].numel()))
        return result

    trainer.training_step = training_step
    trainer.train()
    # The first step of ours looks at what the model does to its logits.
    made, positions = seen[-1]
    assert (made == positions) is whole


def test_it_drops_the_loss_of_a_router(home):
    mixtral = {"base_model": "models/mixtral", "max_steps": 1}
    ours, theirs = train(write_config(home, **mixtral)), train(write_config(home, **mixtral, **OWN))
    assert ours.logs[0]["loss"] == pytest.approx(ours.expected[0], rel=1e-6)
    assert theirs.expected[0] == pytest.approx(ours.expected[0], rel=1e-6)
    # 0.5 times the router's loss, which is near 1 for a balanced one.
    assert theirs.logs[0]["loss"] < theirs.expected[0] - 0.4


def test_on_two_ranks_it_is_the_mean_of_their_means(home, expected):
    """Axolotl turns `average_tokens_across_devices` off. Each rank has rows of another length."""
    changes = {**SAVED, **OWN, "plugins": ["cpu_ranks.CpuRanks"], "drop": ["loss"], "micro_batch_size": 2}
    write_config(home, **changes)
    done = command(home, "axolotl", "train", "config.yml", "--launcher", "torchrun", *TWO_RANKS)
    assert done.returncode == 0, done.stderr
    theirs = history(home, "out/config.yml", 2)[0]["loss"]
    assert theirs == pytest.approx(0.03084, abs=2e-5)
    assert expected.logs[0]["loss"] == pytest.approx(0.03071, abs=2e-5)
