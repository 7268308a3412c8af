"""What was trained stands beside what LLaMA-Factory saves, and in its card; resuming with another loss stops."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest

pytest.importorskip("llamafactory")

from huggingface_hub import ModelCard
from support import counted, factory

from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

LOSS = {"name": "dft", "alpha": 0.5}
SAVES = {"save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_all_that_is_saved_says_what_was_trained(kind, home, tmp_path):
    factory.train(factory.arguments(home, tmp_path, **SAVES, **(factory.LORA if kind == "lora" else {})), LOSS)
    for folder, step in (("checkpoint-1", 1), ("", 2)):
        found = json.loads((tmp_path / folder / "dft_loss.json").read_text())
        assert (found["loss"]["alpha"], found["step"]) == (0.5, step)
        made = {"name": "llamafactory", "version": version("llamafactory"), "trainer": "CustomSeq2SeqTrainer"}
        assert found["host"] == made
        state = json.loads((tmp_path / folder / "trainer_state.json").read_text())
        assert state["stateful_callbacks"]["DftLoss"]["attributes"]["loss"]["alpha"] == 0.5
    counted.assert_kept(tmp_path, tmp_path / "trainer_state.json")
    for folder in ("", *(["checkpoint-2"] if kind == "lora" else [])):
        card = ModelCard.load(tmp_path / folder / "README.md")
        assert {"dft-plugin", "loss:dft"} <= set(card.data.tags)
        assert card.text.count("The loss was `dft(alpha=0.5, floor=0.0)`") == 1


def test_a_checkpoint_of_another_loss_is_refused_also_one_that_is_found_by_itself(home, tmp_path):
    config = factory.arguments(home, tmp_path, **SAVES)
    factory.train({**config, "max_steps": 1}, LOSS)
    for resumed in ({"resume_from_checkpoint": str(tmp_path / "checkpoint-1")}, {"overwrite_output_dir": False}):
        with pytest.raises(ConflictError, match=r"trained with dft\(alpha=0\.5.*would go on with nll.*resume: allow"):
            factory.train({**config, **resumed}, "nll")
    factory.train({**config, "overwrite_output_dir": False}, {"name": "nll", "resume": "allow"})
    (before,) = json.loads((tmp_path / "dft_loss.json").read_text())["before"]
    assert (before["until_step"], before["loss"]["alpha"]) == (1, 0.5)
