"""What the two runs measured, side by side."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Accuracy:
    """Shares of held-out questions answered right."""

    trained: float
    other: float


@dataclass(frozen=True)
class Run:
    """One training run: the log of its trainer, and how its model answers."""

    loss: str
    adapter: Path
    log: list[dict[str, Any]]
    accuracy: Accuracy


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """Read the training records that the trainer left beside its last checkpoint."""
    states = list(output_dir.glob("checkpoint-*/trainer_state.json"))
    if not states:
        raise SystemExit(f"no trainer_state.json under {output_dir}: did the training run finish?")
    newest = max(states, key=lambda state: int(state.parent.name.removeprefix("checkpoint-")))
    history = json.loads(newest.read_text(encoding="utf-8"))["log_history"]
    return [record for record in history if "loss" in record]


def table(base: Accuracy, runs: list[Run], trained: str, other: str) -> Table:
    """Lay the runs out: first logged step against last, accuracy before against after."""
    out = Table(title="Same model, data, seed and steps; only the loss differs")
    for heading in ("", "loss", "nll (nats)", "mean target p", trained, other):
        out.add_column(heading, justify="left" if heading == "" else "right")
    dash = "[dim]-[/dim]"
    out.add_row("before", dash, dash, dash, f"{base.trained:.0%}", f"{base.other:.0%}")
    for run in runs:
        out.add_row(
            run.loss,
            _first_to_last(run.log, "loss"),
            _first_to_last(run.log, "dft/nll"),
            _first_to_last(run.log, "dft/mean_prob"),
            f"{run.accuracy.trained:.0%}",
            f"{run.accuracy.other:.0%}",
        )
    return out


def _first_to_last(log: list[dict[str, Any]], key: str) -> str:
    return f"{log[0][key]:.3f} -> {log[-1][key]:.3f}"
