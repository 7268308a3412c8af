"""Every example in `example_configs/verl` is one that hydra composes on verl's own config, and verl's classes take."""

from __future__ import annotations

from pathlib import Path

import pytest

from dft_plugin.cli.checking import check

pytest.importorskip("verl")

from omegaconf import OmegaConf
from support.verl_runs import compose

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[3]
PLACE = ROOT / "example_configs" / "verl"
EXAMPLES = sorted(PLACE.glob("*.yaml"))
IDS = [path.stem for path in EXAMPLES]
PAPER = "paper-qwen2.5-math-1.5b"


@pytest.mark.parametrize("path", EXAMPLES, ids=IDS)
def test_it_opens_with_its_command_and_passes_dft_check(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(f"dft train example_configs/verl/{path.name}")
    report = check(path)
    assert report.ok, report.obstacles()
    assert report.host.name == "verl"


@pytest.mark.parametrize("path", EXAMPLES, ids=IDS)
def test_hydra_and_verl_take_every_key(path):
    from verl.utils.config import omega_conf_to_dataclass

    from dft_verl.trainer import prepare

    config = compose(name=path.stem, folder=PLACE)
    stock = compose()
    assert unknown(config, stock) <= {"loss", "data.shuffle", "data.seed"} | of_megatron(path)
    # A class has no key that it does not know; that of the model would load one.
    engine, optimizer = omega_conf_to_dataclass(config.engine), omega_conf_to_dataclass(config.optim)
    assert optimizer.lr == config.optim.lr
    assert engine.strategy == ("megatron" if path.stem == "megatron" else "fsdp2")
    trainer = type("Trainer", (), dict.fromkeys(("_build_engine", "_build_ckpt_handler", "fit")))()
    assert prepare(trainer, config).settings.name == "dft"


def of_megatron(path):
    """Its engine has keys of its own."""
    if path.stem != "megatron":
        return set()
    config = compose("engine=megatron", "optim=megatron")
    return {f"{group}.{key}" for group in ("engine", "optim") for key in config[group]}


def unknown(config, stock):
    """Keys of two levels that verl's own config does not have, and nobody of verl reads unasked."""
    found = set()
    for group, keys in OmegaConf.to_container(config, resolve=False).items():
        if group not in stock:
            found.add(group)
        elif isinstance(keys, dict):
            found |= {f"{group}.{key}" for key in keys if key not in stock[group]}
    return found


def test_the_paper_recipe_is_that_of_the_paper():
    """arXiv 2508.05629, section 4.1, on 8 GPUs."""
    config = compose(name=PAPER, folder=PLACE)
    assert (config.optim.lr, list(config.optim.betas), config.optim.optimizer) == (5e-5, [0.9, 0.95], "AdamW")
    assert (config.data.train_batch_size, config.data.max_length, config.trainer.total_epochs) == (256, 2048, 1)
    assert (config.optim.lr_scheduler_type, config.optim.lr_warmup_steps_ratio) == ("cosine", 0.1)
    assert (config.data.train_max_samples, config.data.shuffle) == (100_000, True)
    assert config.data.train_batch_size == config.data.micro_batch_size_per_gpu * 8 * config.trainer.n_gpus_per_node
    assert (config.optim.clip_grad, config.engine.model_dtype) == (1.0, "fp32")


def test_the_faults_of_the_papers_code_are_switches_with_names():
    every = "+fault=[gradient_not_divided,first_100k,bf16_weights]"
    right, config = (compose(*given, name=PAPER, folder=PLACE) for given in ([], [every]))
    assert {path.stem for path in (PLACE / "fault").iterdir()} == {
        "gradient_not_divided",
        "first_100k",
        "bf16_weights",
    }
    assert config.optim.clip_grad == right.optim.clip_grad / 8
    assert config.data.shuffle is False
    assert config.engine.model_dtype == "bf16"
    one = compose("+fault=first_100k", name=PAPER, folder=PLACE)
    assert (one.data.shuffle, one.optim.clip_grad) == (False, 1.0)


def test_verl_calls_the_first_rows_random(tmp_path, capsys):
    """Why the recipe says `shuffle: true`."""
    import pandas as pd
    from support import training, verl_runs
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    rows = [{"messages": [{"role": "user", "content": f"w{n}"}]} for n in range(4, 14)]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    tokenizer = training.tokenizer()
    tokenizer.chat_template = verl_runs.TEMPLATE

    def chosen(**more):
        made = MultiTurnSFTDataset(
            str(tmp_path / "rows.parquet"), tokenizer, {"pad_mode": "no_padding", **more}, max_samples=3
        )
        return [messages[0]["content"] for messages in made.messages]

    assert chosen() == ["w4", "w5", "w6"]
    assert "selected 3 random samples out of 10" in capsys.readouterr().out
    assert chosen(shuffle=True, seed=1) != ["w4", "w5", "w6"]
