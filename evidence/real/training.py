"""A training of a real model by `dft train`, and what `dft probe` says before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Length:
    """How long a training is.

    Attributes:
        steps: of the optimizer.
        rows: of a batch.
        questions: that are asked afterwards, at each temperature.
        tokens: of a reply, at most.
    """

    steps: int = 150
    rows: int = 8
    questions: int = 150
    tokens: int = 48


SHORT = Length(steps=2, rows=2, questions=4, tokens=4)
"""At which nothing is learned."""


def train(folder: Path, written: Mapping[str, Any], threads: int, *words: str) -> list[dict[str, Any]]:
    """Write the config, run `dft train` on it, with words behind it, and return what was logged.

    Raises:
        RuntimeError: the command failed; what it said last is in it.
    """
    _dft("train", folder, written, threads, *words)
    state = next(Path(written["output_dir"]).glob("checkpoint-*/trainer_state.json"))
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return [{name: value for name, value in line.items() if _kept(name)} for line in history if "loss" in line]


def probe(folder: Path, written: Mapping[str, Any], threads: int, tokens: int) -> dict[str, Any]:
    """Write the config, run `dft probe` on it, and return what it found.

    Raises:
        RuntimeError: the command failed; what it said last is in it.
    """
    said = _dft("probe", folder, written, threads, "--json", "--tokens", str(tokens))
    found: dict[str, Any] = json.loads(said[said.index("{\n") :])["found"]
    return found


def _dft(command: str, folder: Path, written: Mapping[str, Any], threads: int, *words: str) -> str:
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump(dict(written), sort_keys=False), encoding="utf-8")
    line = [sys.executable, "-m", "dft_plugin.cli", command, str(path), *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        raise RuntimeError(f"`dft {command} {path}` ended with {done.returncode}: {said}")
    return done.stdout


def _kept(name: str) -> bool:
    return name in {"step", "loss", "dft/nll", "dft/mean_prob", "dft/eos_prob", "dft/low_weight_share"}
