"""A LoRA step of SmolLM2 by a host's own command, in this process: how `steps.py` trains in each.

Each function trains some steps with a loss: `sft` and `dft` are the host's own, `ours` is `loss: dft`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.clock import Clock

LORA_R, LORA_ALPHA = 16, 32
"""Of every run; on all linear layers."""


@contextlib.contextmanager
def clocked(clock: Clock) -> Iterator[None]:
    """Have the clock among the callbacks of whatever trainer trains meanwhile."""
    from transformers import Trainer

    train = Trainer.train

    def train_clocked(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(clock)
        return train(self, *args, **kwargs)

    Trainer.train = train_clocked
    try:
        yield
    finally:
        Trainer.train = train


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def with_axolotl(loss: str, steps: int, clock: Clock, out: str, *, model: Path, texts: list[str], rows: int) -> None:
    """Train as `axolotl train` does; `use_dft` is 0.20's and newer."""
    # Before it is imported: it asks for a server then, for minutes where there is no network.
    os.environ.update(AXOLOTL_DO_NOT_TRACK="1", DO_NOT_TRACK="1", ACCELERATE_USE_CPU="true")
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train

    data = _write(Path(out, "rows.jsonl"), [{"text": text} for text in texts])
    config = {
        "base_model": str(model),
        "datasets": [{"path": data, "ds_type": "json", "type": "completion"}],
        "dataset_prepared_path": f"{out}/prepared",
        "sequence_len": 512,
        "sample_packing": False,
        "micro_batch_size": rows,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "num_epochs": 1,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "learning_rate": 1e-4,
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "attn_implementation": "sdpa",
        "gradient_checkpointing": False,
        "val_set_size": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "adapter": "lora",
        "lora_r": LORA_R,
        "lora_alpha": LORA_ALPHA,
        "lora_target_linear": True,
        **{f"lora_{what}_kernel": False for what in ("mlp", "qkv", "o", "embedding")},
        "output_dir": f"{out}/run",
    }
    config |= {"ours": {"plugins": ["dft_axolotl.DFTPlugin"], "loss": "dft"}, "dft": {"use_dft": True}}.get(loss, {})
    path = Path(out, "config.yml")
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    cfg = load_cfg(str(path))
    with clocked(clock):
        train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg, cli_args=TrainerCliArgs()))


def with_swift(loss: str, steps: int, clock: Clock, out: str, *, model: Path, texts: list[str], rows: int) -> None:
    """Train as `swift pt` does."""
    os.environ.update(USE_HF="1", MODELSCOPE_OFFLINE="1")
    from swift import pretrain_main

    data = _write(Path(out, "rows.jsonl"), [{"messages": [{"role": "assistant", "content": text}]} for text in texts])
    options = {
        "model": str(model),
        "model_type": "llama",
        "template": "default",
        "dataset": data,
        "tuner_type": "lora",
        "lora_rank": LORA_R,
        "lora_alpha": LORA_ALPHA,
        "target_modules": "all-linear",
        "torch_dtype": "float32",
        "check_model": "false",
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "max_length": 512,
        "truncation_strategy": "right",
        "gradient_checkpointing": "false",
        "split_dataset_ratio": 0,
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": "true" if clock.device == "cpu" else "false",
        "output_dir": f"{out}/run",
        **({"enable_dft_loss": "true"} if loss == "dft" else {}),
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    with clocked(clock):
        if loss == "ours":
            from dft_swift.run import run_with_loss

            run_with_loss(pretrain_main, words, "dft")
        else:
            pretrain_main(words)


def with_unsloth(loss: str, steps: int, clock: Clock, out: str, *, model: Path, texts: list[str], rows: int) -> None:
    """Train with TRL's SFTTrainer as Unsloth rewrites it."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    import unsloth  # noqa: F401, I001 - first, for what it does
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    from dft_plugin import activate

    loaded, tokenizer = FastLanguageModel.from_pretrained(
        str(model), dtype=torch.float32, load_in_4bit=False, max_seq_length=512, local_files_only=True
    )
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    loaded = FastLanguageModel.get_peft_model(
        loaded, r=LORA_R, lora_alpha=LORA_ALPHA, lora_dropout=0, target_modules=linear
    )
    args = SFTConfig(
        output_dir=out,
        loss_type="dft" if loss == "dft" else "nll",
        per_device_train_batch_size=rows,
        # Its own default is 2 on a GPU.
        gradient_accumulation_steps=1,
        max_steps=steps,
        max_length=512,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=clock.device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_list([{"input_ids": tokenizer(text).input_ids[:512]} for text in texts])
    trainer = SFTTrainer(model=loaded, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[clock])
    if loss == "ours":
        activate(trainer, loss="dft")
    trainer.train()
