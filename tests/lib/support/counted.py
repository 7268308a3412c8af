"""What a run has counted of its targets' probabilities, beside what it has logged of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def assert_kept(folder: Path, state: Path) -> None:
    """Check the first and the last interval of a run against its own log: how many targets, and their mean p.

    Args:
        folder: its output folder.
        state: a `trainer_state.json` of it.
    """
    assert_agree(folder, json.loads(state.read_text())["log_history"])


def assert_agree(folder: Path, logged: Iterable[dict[str, Any]], of: str = "training", prefix: str = "dft/") -> None:
    """Check the first and the last interval of a run, or evaluation, against what was logged of them, by step."""
    lines = [json.loads(line) for line in (folder / "dft_probabilities.jsonl").read_text().splitlines()]
    counted = [line for line in lines if line["of"] == of]
    logs = [entry for entry in logged if f"{prefix}tokens" in entry]
    ends = dict.fromkeys((0, len(logs) - 1))
    assert [line["step"] for line in counted] == [logs[end]["step"] for end in ends]
    for line, end in zip(counted, ends, strict=True):
        tokens, edges = sum(line["counts"]), line["edges"]
        assert tokens == logs[end][f"{prefix}tokens"]
        low, high = (sum(c * e for c, e in zip(line["counts"], of, strict=True)) for of in (edges[:-1], edges[1:]))
        # The mean is between those of the bands' ends.
        assert low - 1e-6 <= logs[end][f"{prefix}mean_prob"] * tokens <= high + 1e-6
