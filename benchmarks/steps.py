"""A LoRA step of SmolLM2-135M inside a host: its own SFT, its own DFT, and ours.

    python -m benchmarks.steps drive trl            # starts one process for each loss, in turn
    python -m benchmarks.steps drive llamafactory   # or axolotl, swift, unsloth
    python -m benchmarks.steps shares axolotl       # what a step of the host's own SFT is made of

Each process trains some steps on the same rows of text, says how long each took, and its peak memory over what it
held when training began.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from packaging.version import Version
from rich.console import Console
from transformers import AutoTokenizer

from benchmarks import memory
from benchmarks.clock import Clock
from benchmarks.in_hosts import with_axolotl, with_swift, with_unsloth
from benchmarks.problem import MIB
from benchmarks.shares import Shares
from demo.model import prepare_model

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)
OUT = Path("benchmarks/out")
MODEL = Path("demo/out/model")
ROWS, LENGTH = 4, 512
LOSSES = {"sft": "its own SFT", "dft": "its own DFT", "ours": "`loss: dft`"}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


def texts(count: int) -> list[str]:
    """Return pieces of the standard library, long enough for a row of tokens each."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(0).shuffle(files)
    pieces = (file.read_text(encoding="utf-8", errors="ignore")[2000:] for file in files)
    return [piece[: 8 * LENGTH] for piece in pieces if len(piece) > 8 * LENGTH][:count]


def with_trl(loss: str, steps: int, clock: Clock, out: str) -> None:
    """Train with TRL's SFTTrainer."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from dft_plugin import activate

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = [{"input_ids": tokenizer(text).input_ids[:LENGTH]} for text in texts(ROWS * steps)]
    args = SFTConfig(
        output_dir=out,
        loss_type="dft" if loss == "dft" else "nll",
        per_device_train_batch_size=ROWS,
        max_steps=steps,
        max_length=LENGTH,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=clock.device == "cpu",
        model_init_kwargs={"dtype": "float32"},
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        str(MODEL),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        callbacks=[clock],
    )
    if loss == "ours":
        activate(trainer, loss="dft")
    trainer.train()


def with_llamafactory(loss: str, steps: int, clock: Clock, out: str) -> None:
    """Train with LLaMA-Factory's `run_exp`."""
    from llamafactory.train.tuner import run_exp

    from dft_llamafactory.arguments import read
    from dft_llamafactory.run import run_with_loss

    rows = [{"instruction": "Write.", "input": "", "output": text} for text in texts(ROWS * steps)]
    folder = Path(out)
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    config = {
        "model_name_or_path": str(MODEL),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": LORA["r"],
        "lora_alpha": LORA["lora_alpha"],
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": out,
        "template": "default",
        "cutoff_len": LENGTH,
        "overwrite_cache": True,
        "output_dir": f"{out}/run",
        "per_device_train_batch_size": ROWS,
        "max_steps": steps,
        "disable_gradient_checkpointing": True,
        "use_cpu": clock.device == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_dft_loss": loss == "dft",
    }
    if loss == "ours":
        run_with_loss(run_exp, read({**config, "loss": "dft"}), callbacks=[clock])
    else:
        run_exp(config, callbacks=[clock])


HOSTS = {"trl": with_trl, "llamafactory": with_llamafactory}
BY_COMMAND = {"axolotl": with_axolotl, "swift": with_swift, "unsloth": with_unsloth}


def losses(host: str) -> dict[str, str]:
    """Return what a host trains; Axolotl has a DFT of its own since 0.20."""
    without_own = host == "axolotl" and Version(version("axolotl")) < Version("0.20")
    return {loss: name for loss, name in LOSSES.items() if not (loss == "dft" and without_own)}


def train(host: str, loss: str, steps: int, clock: Clock) -> None:
    """Train in this process, in a folder that goes afterwards."""
    with tempfile.TemporaryDirectory() as out:
        if host in HOSTS:
            HOSTS[host](loss, steps, clock, out)
        else:
            rows = texts(ROWS * steps)
            BY_COMMAND[host](loss, steps, clock, out, model=MODEL.resolve(), texts=rows, rows=ROWS)


@app.command()
def one(host: str, loss: str, steps: int, device: str, threads: int) -> None:
    """Train in this process, and print what it took."""
    torch.set_num_threads(threads)
    clock = Clock(device)
    train(host, loss, steps, clock)
    # The first step allocates and compiles.
    result = {"seconds": clock.seconds[1:], "bytes": memory.peak(device) - clock.before}
    print(f"steps: {json.dumps(result)}")


@app.command()
def drive(
    host: str,
    rounds: Annotated[int, typer.Option(help="Processes for each loss, in turn.")] = 2,
    steps: Annotated[int, typer.Option(help="Of each process; the first is not counted.")] = 5,
    device: str = "cpu",
    threads: int = 1,
    out: Path = OUT,
) -> None:
    """Start one process after the other, and write the numbers down."""
    prepare_model(MODEL)
    runs: dict[str, dict[str, Any]] = {
        loss: {"name": name, "seconds": [], "bytes": []} for loss, name in losses(host).items()
    }
    for turn in range(rounds):
        for loss in runs if turn % 2 == 0 else reversed(runs):
            words = ["one", host, loss, str(steps), device, str(threads)]
            done = subprocess.run([sys.executable, "-m", "benchmarks.steps", *words], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            (line,) = (line for line in done.stdout.splitlines() if line.startswith("steps: "))
            found = json.loads(line.removeprefix("steps: "))
            runs[loss]["seconds"] += found["seconds"]
            runs[loss]["bytes"].append(found["bytes"])
            console.print(f"{host}: {loss}: {median(found['seconds']):.2f} s, {found['bytes'] / MIB:.0f} MiB")
    what = (
        f"{ROWS} rows of {LENGTH} tokens, LoRA of rank {LORA['r']} on all linear layers, float32, {threads} thread(s)"
    )
    out.mkdir(parents=True, exist_ok=True)
    data = {"host": host, "runs": list(runs.values()), "what": f"{what}, no gradient checkpointing."}
    (out / f"steps-{host}.json").write_text(json.dumps(data, indent=1))


@app.command()
def shares(host: str, threads: int = 1, out: Path = OUT) -> None:
    """Profile a step of the host's own SFT on a CPU, and write down the seconds of its parts."""
    prepare_model(MODEL)
    torch.set_num_threads(threads)
    clock = Shares("cpu")
    train(host, "sft", 2, clock)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"shares-{host}.json").write_text(json.dumps({"host": host, "parts": clock.parts}, indent=1))
    console.print(f"{host}: {clock.parts}")


if __name__ == "__main__":
    app()
