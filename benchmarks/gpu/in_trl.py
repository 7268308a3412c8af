"""A training step of a random model of the shape of Qwen2.5-0.5B in TRL: its own losses, and ours."""

from __future__ import annotations

import random
import tempfile
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import memory
from benchmarks.clock import Clock
from benchmarks.gpu.clock import forget, milliseconds
from benchmarks.gpu.sheet import Options, Sheet
from benchmarks.problem import MIB

SIZES = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
LAYERS, VOCAB = 24, 151_936
"""As huggingface.co/Qwen/Qwen2.5-0.5B/blob/main/config.json says."""

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
LOSSES = {"nll": "TRL's nll", "dft": "TRL's dft", "ours": "`loss: dft`"}
NEEDED = {"lora": ("trl", "datasets", "peft"), "qlora": ("trl", "datasets", "peft", "bitsandbytes")}
STEPS, COLD = 10, 3
"""Of a run; the first ones allocate and compile."""


def config(small: bool, layers: int = LAYERS) -> Any:
    """Return the config of the model."""
    from transformers import Qwen2Config

    shape: dict[str, Any] = {**SMALL, "vocab_size": 256} if small else {**SIZES, "vocab_size": VOCAB}
    return Qwen2Config(
        **shape,
        num_hidden_layers=min(layers, 2) if small else layers,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def steps(options: Options, sheet: Sheet, kind: str) -> None:
    """Train some steps with each loss, twice, in turn; `kind` is `lora` or `qlora`."""
    missing = [name for name in NEEDED[kind] if not _here(name)]
    if missing:
        sheet.say(f"Not run: {', '.join(missing)} not installed.")
        return
    rows, length = (2, 16) if options.small else (8, 1024)
    sheet.say(
        f"{rows} rows of {length} tokens, LoRA of rank 16 on all linear layers, bfloat16, no gradient checkpointing; "
        f"random weights. Two runs of {STEPS} steps each, in turn, the first {COLD} of each not counted; memory: peak "
        "over what was in use when training began."
    )
    found: dict[str, dict[str, Any]] = {loss: {"seconds": [], "mb": [], "losses": []} for loss in LOSSES}
    with tempfile.TemporaryDirectory() as folder:
        if kind == "qlora":
            _save(options, Path(folder, "base"))
        for turn in range(2):
            for loss in LOSSES if turn % 2 == 0 else reversed(LOSSES):
                if "missing" not in found[loss]:
                    _run(options, sheet, kind, loss, Path(folder), (rows, length), found[loss])
                sheet.keep("found", found)
                forget(options.device)
    sheet.head("", "ms per step", "times TRL's nll", "extra memory, MiB", "first loss", "last loss")
    base = found["nll"]["seconds"]
    for loss, entry in found.items():
        if "missing" in entry:
            sheet.row_failed(LOSSES[loss], f"**failed: {entry['missing']}**", "", "", "", "")
            continue
        times = entry["seconds"]
        sheet.row(
            LOSSES[loss],
            f"{milliseconds(median(times))} ({milliseconds(min(times))} to {milliseconds(max(times))})",
            f"{median(times) / median(base):.3f}" if base else "",
            f"{max(entry['mb']):,.0f}",
            *(f"{entry['losses'][index]:.4f}" for index in (0, -1)),
        )


def _here(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _save(options: Options, folder: Path) -> None:
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    with torch.device(options.device):
        Qwen2ForCausalLM(config(options.small)).to(torch.bfloat16).save_pretrained(folder)


def _model(options: Options, kind: str, folder: Path) -> Any:
    from transformers import BitsAndBytesConfig, Qwen2ForCausalLM

    torch.manual_seed(0)
    if kind == "lora":
        with torch.device(options.device):
            return Qwen2ForCausalLM(config(options.small)).to(torch.bfloat16)
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    place = {"": 0 if options.device == "cuda" else "cpu"}
    return Qwen2ForCausalLM.from_pretrained(
        folder / "base", quantization_config=quantised, device_map=place, dtype=torch.bfloat16
    )


def _run(
    options: Options, sheet: Sheet, kind: str, loss: str, folder: Path, size: tuple[int, int], entry: dict[str, Any]
) -> None:
    clock = Clock(options.device)
    try:
        trainer = _trainer(options, _model(options, kind, folder), loss, folder, size, clock)
        trainer.train()
    except Exception as error:
        entry["missing"] = sheet.fault(LOSSES[loss], error)
        return
    entry["seconds"] += clock.seconds[COLD:]
    entry["mb"].append((memory.peak(options.device) - clock.before) / MIB)
    entry["losses"] = [row["loss"] for row in trainer.state.log_history if "loss" in row]


def _trainer(options: Options, model: Any, loss: str, folder: Path, size: tuple[int, int], clock: Clock) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from dft_plugin import activate

    rows, length = size
    pick = random.Random(0)
    ids = range(3, model.config.vocab_size)
    args = SFTConfig(
        output_dir=str(folder / "run"),
        loss_type="dft" if loss == "dft" else "nll",
        per_device_train_batch_size=rows,
        max_steps=STEPS,
        max_length=length,
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=options.device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model,
        args=args,
        train_dataset=Dataset.from_list([{"input_ids": pick.choices(ids, k=length)} for _ in range(rows * STEPS)]),
        processing_class=_tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
        callbacks=[clock],
    )
    if loss == "ours":
        activate(trainer, loss="dft")
    return trainer


def _tokenizer() -> Any:
    """A tokenizer that is never asked for a word: the rows are numbers already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
