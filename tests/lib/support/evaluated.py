"""What `dft evaluate --json` printed, beside a run's own log and the same numbers by hand in float64."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dft_plugin.cli.app import app

KEYS = ("loss", "dft/loss", "dft/nll", "dft/mean_prob", "dft/tokens", "dft/effective_tokens")


def evaluate(*words: object) -> dict[str, Any]:
    """Run the command in this process."""
    done = CliRunner().invoke(app, ["evaluate", *map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{\n") :])
    return found


def refused(*words: object) -> str:
    """Run the command in this process, and return why it did not."""
    return str(CliRunner().invoke(app, ["evaluate", *map(str, words)]).exception)


def assert_logged(numbers: dict[str, float], metrics: dict[str, float], prefix: str = "eval") -> None:
    """Compare with what a host has logged of an evaluation of its own."""
    for key in KEYS:
        assert numbers[key] == pytest.approx(metrics[f"{prefix}_{key}"], rel=1e-6), key


def assert_right(
    numbers: dict[str, float], model: Any, rows: Iterable[tuple[list[int], list[int]]], alpha: float
) -> None:
    """Compare with a model's own logits.

    Args:
        numbers: of one set.
        model: that was evaluated.
        rows: token ids and labels of each row, unshifted.
        alpha: of the loss.
    """
    model, logp, top1 = model.double().eval(), [], []
    for ids, labels in rows:
        with torch.no_grad():
            of_all = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        target = torch.tensor(labels[1:])
        of_all, target = of_all[target != -100], target[target != -100]
        logp.append(of_all.gather(1, target[:, None])[:, 0])
        top1.append(of_all.argmax(-1) == target)
    logp = torch.cat(logp)
    weight = (alpha * logp).exp()
    expected = {
        "dft/loss": -(weight * logp).mean(),
        "dft/nll": -logp.mean(),
        "dft/mean_prob": logp.exp().mean(),
        "dft/top1": torch.cat(top1).double().mean(),
        "dft/effective_tokens": weight.sum() ** 2 / weight.square().sum(),
    }
    for key, value in expected.items():
        assert numbers[key] == pytest.approx(value.item(), rel=1e-6), key
    assert numbers["dft/tokens"] == len(logp)


def contents(folder: Path) -> dict[str, int]:
    """What is in a folder, and when it was written."""
    return {path.as_posix(): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
