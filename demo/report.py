"""What the two runs measured, side by side."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Accuracy:
    """Shares of held-out questions answered right: of the task that is trained, and greedily of another."""

    greedy: float
    sampled: float
    other: float


@dataclass(frozen=True)
class Run:
    """One training run: the log of its trainer, and how its model answers."""

    loss: str
    adapter: Path
    log: list[dict[str, Any]]
    accuracy: Accuracy

    def first_to_last(self, key: str) -> str:
        """Show a logged number at the first step, which is before any update, and at the last."""
        return f"{self.log[0][key]:.3f} -> {self.log[-1][key]:.3f}"


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """Read the training records that the trainer left beside its last checkpoint."""
    states = list(output_dir.glob("checkpoint-*/trainer_state.json"))
    if not states:
        raise SystemExit(f"no trainer_state.json under {output_dir}: did the training run finish?")
    newest = max(states, key=lambda state: int(state.parent.name.removeprefix("checkpoint-")))
    history = json.loads(newest.read_text(encoding="utf-8"))["log_history"]
    return [record for record in history if "loss" in record]


def table(base: Accuracy, runs: list[Run], trained: str, other: str) -> Table:
    """Lay the runs out: a column each, first logged step -> last; accuracy on held-out items."""
    out = Table("", "before", *(run.loss for run in runs))
    out.title = "Same model, data, seed and steps; only the loss differs"
    out.add_row("loss that was minimised", "", *(run.first_to_last("loss") for run in runs))
    out.add_row("nll, nats per token", "", *(run.first_to_last("dft/nll") for run in runs))
    out.add_row("mean target p", "", *(run.first_to_last("dft/mean_prob") for run in runs))
    out.add_section()
    after = [run.accuracy for run in runs]
    for how, of in (("likeliest tokens", "greedy"), ("sampled", "sampled")):
        out.add_row(f"{trained}, {how}", *(f"{getattr(share, of):.0%}" for share in (base, *after)))
    out.add_row(other, f"{base.other:.0%}", *(f"{share.other:.0%}" for share in after))
    out.add_section()
    out.add_row("adapter", "", *(str(run.adapter) for run in runs))
    return out
