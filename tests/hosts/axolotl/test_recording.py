"""What was trained stands beside what Axolotl saves, in its card and in W&B; resuming with another loss stops."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest

pytest.importorskip("axolotl")

from huggingface_hub import ModelCard
from support import counted
from support.axolotl_runs import LORA, train, write_config

from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

LOSS = {"name": "dft", "alpha": 0.5}
SAVES = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


def run(home, **changes):
    """All that `axolotl train` does in its process, with W&B offline."""
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train as train_and_save

    config = write_config(home, loss=LOSS, **SAVES, **changes)
    cfg = load_cfg(str(config))
    return train_and_save(cfg, load_datasets(cfg=cfg, cli_args=TrainerCliArgs()))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_all_that_is_saved_says_what_was_trained(kind, home, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(home))):
        monkeypatch.setenv(name, value)
    tracked = {"wandb_project": "tiny", "wandb_mode": "offline"} if kind == "full" else {}
    run(home, **(LORA if kind == "lora" else {}), **tracked)
    out = home / "out" / "config.yml"
    for folder, step in (("checkpoint-1", 1), ("", 2)):
        found = json.loads((out / folder / "dft_loss.json").read_text())
        assert (found["loss"]["alpha"], found["step"]) == (0.5, step)
        assert found["host"] == {"name": "axolotl", "version": version("axolotl"), "trainer": "AxolotlTrainer"}
        assert found["computed"][0]["path"] == "hidden states"
    state = json.loads((out / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["DftLoss"]["attributes"]["loss"]["alpha"] == 0.5
    counted.assert_kept(out, out / "checkpoint-2" / "trainer_state.json")
    card = ModelCard.load(out / "README.md")
    assert {"dft-plugin", "loss:dft"} <= set(card.data.tags)
    assert card.text.count("The loss was `dft(alpha=0.5, floor=0.0)`") == 1
    if kind == "full":
        told = dict(wandb.run.config)
        wandb.finish()
        assert (told["dft_loss"], told["dft_loss_alpha"]) == ("dft(alpha=0.5, floor=0.0)", 0.5)
        assert told["dft_loss_computed_kernel"] == "chunked"


def test_a_checkpoint_of_another_loss_is_refused_and_one_without_a_record_named(home, capfd):
    train(write_config(home, loss=LOSS, **SAVES))
    place = home / "out" / "config.yml" / "checkpoint-1"
    other = write_config(home, loss="nll", **SAVES)
    with pytest.raises(ConflictError, match=r"trained with dft\(alpha=0\.5.*would go on with nll.*resume: allow"):
        train(other, resume=str(place))
    (place / "dft_loss.json").unlink()
    state = json.loads((place / "trainer_state.json").read_text())
    del state["stateful_callbacks"]["DftLoss"]
    (place / "trainer_state.json").write_text(json.dumps(state))
    train(other, resume=str(place))
    assert f"{place} has no record of its loss" in capfd.readouterr().err
