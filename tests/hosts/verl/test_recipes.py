"""The recipes: hydra composes each on verl's own config, verl's classes take it, and one trains on stand-ins."""

from __future__ import annotations

import pytest

from dft_plugin.cli.checking import check

pytest.importorskip("verl")

from support import recipe_runs, tiny, verl_runs
from support.verl_runs import compose

pytestmark = pytest.mark.host

OF_A_CPU = (
    "data.num_workers",
    "model.use_remove_padding",
    "+model.override_config.attn_implementation",
    "trainer.device",
    "engine.use_torch_compile",
    "+engine.mixed_precision",
    "trainer.resume_mode",
)


@pytest.mark.parametrize(("model", "lora", "faults"), recipe_runs.cells())
def test_hydra_and_verl_take_every_key_and_the_loss_is_on(model, lora, faults, tmp_path):
    from verl.utils.config import omega_conf_to_dataclass

    from dft_verl.trainer import prepare

    path = recipe_runs.written("verl", tmp_path, model, lora=lora, faults=faults)
    report = check(path)
    assert (report.host.name, report.obstacles()) == ("verl", [])
    # A key that verl does not have would be refused here: its own config is closed.
    config = compose(name=path.stem, folder=tmp_path)
    engine, optimizer = omega_conf_to_dataclass(config.engine), omega_conf_to_dataclass(config.optim)
    assert (engine.model_dtype, optimizer.clip_grad) == (("bf16", 1 / 8) if faults else ("fp32", 1))
    assert (config.model.lora_rank, config.optim.lr_warmup_steps_ratio > 0) == (8 if lora else 0, True)
    trainer = type("Trainer", (), dict.fromkeys(("_build_engine", "_build_ckpt_handler", "fit")))()
    assert prepare(trainer, config).settings.name == "dft"


@pytest.mark.full
@pytest.mark.parametrize(("model", "lora"), [("llama-3.1-8b", True), ("deepseekmath-7b", False)])
def test_it_trains_on_stand_ins(model, lora, home):
    """A model of the same architecture, rows that `recipes data` has written, one process; the rest is the recipe."""
    recipe_runs.prepared("verl", home / "data", lambda pick: f"w{pick.randint(4, tiny.VOCAB - 1)}", rows=8)
    path = recipe_runs.written("verl", home, model, lora=lora, gpus=1, path=str(home / "llama"), data="data")
    cpu = [f"{key}={verl_runs.FULL[key]}" for key in OF_A_CPU]
    small = [
        "data.train_batch_size=8",
        "trainer.total_training_steps=1",
        "trainer.logger=[console,file]",
        "trainer.save_freq=-1",
    ]
    place = ("--config-path", str(home), "--config-name", path.stem)
    done = verl_runs.command(home, *place, *cpu, *small)
    assert done.returncode == 0, done.stderr[-4000:]
    assert verl_runs.ON in done.stderr
    entry = verl_runs.logged(home)[0]
    assert 0 < entry["train/loss"] < entry["dft/nll"]
    assert entry["dft/tokens"] == answers(home)


def answers(home):
    """Of each row the answer and the end of the sequence."""
    import pandas as pd

    rows = pd.read_parquet(home / "data" / "train.parquet")["messages"]
    return sum(len(messages[1]["content"].split()) + 1 for messages in rows)
