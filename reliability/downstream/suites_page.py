"""The part of the page about the trainer tests of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

NEAR = 1e-6
"""How far weights may be apart, for the rounding of sums that are taken in another order: float32, weights below 4."""

AMPLIFIED = 10
"""Times the distance that rounding alone leaves, where the steps of a test amplify it."""

WHERE = {
    "TRL": "test_sft_trainer.py of TRL 0.23.1, against the TRL that is installed",
    "transformers": "test_training_mixin.py of transformers 5.24.0, on twelve tiny models: 300 steps of Adam on one "
    "batch, then the batch is generated",
}


def verdict(row: dict[str, Any]) -> str:
    """Say in a word what came of a test of theirs."""
    if row["stock"]["outcome"] != row["nll"]["outcome"] or row["trained"][0] != row["trained"][1]:
        return "outcome"
    if not row["trained"][1]:
        return "trains nothing"
    if row["under"] != ["nll"]:
        return "not put"
    # A difference that is not a number is one.
    if row["gap"] <= NEAR:
        return "same"
    return "rounding" if row["gap"] <= AMPLIFIED * (row.get("rounding") or 0.0) else "weights"


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Return it; empty where no suite has been run."""
    found = [row for row in rows if row["part"] == "suite"]
    if not found:
        return ""
    head = [
        "tests of",
        "",
        "run",
        "train",
        "same",
        "as far as rounding",
        "other weights",
        "other outcome",
        "`nll` not put",
    ]
    head.append("largest gap")
    table = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for suite, where in WHERE.items():
        of_suite = [row for row in found if row["host"] == suite]
        if of_suite:
            table.append(_suite(suite, where, of_suite))
    words = Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
    broken = [f"`{row['test'].split('::')[-1]}`" for row in found if row["trained"][1] and not row.get("finite", True)]
    if broken:
        table += [
            "",
            f"Weights that are no numbers in the end, stock and ours alike: {', '.join(broken)} (float16, no scaler).",
        ]
    parts = {"table": table, "differ": _apart(found), "fail": _failed(found)}
    return words.substitute({key: "\n".join(lines) for key, lines in parts.items()}, near=f"{NEAR:g}")


def _suite(suite: str, where: str, rows: Sequence[dict[str, Any]]) -> str:
    counts = Counter(map(verdict, rows))
    trained = [row for row in rows if row["trained"][1]]
    gap = max((row["gap"] for row in trained if verdict(row) == "same"), default=0.0)
    cells = [
        len(rows),
        len(trained),
        *(counts[word] for word in ("same", "rounding", "weights", "outcome", "not put")),
    ]
    return f"| {' | '.join(map(str, [suite, where, *cells, f'{gap:.1e}']))} |"


def _failed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say why tests that train nothing do not pass: of theirs, in both."""
    reasons: Counter[str] = Counter()
    for row in rows:
        if row["stock"]["outcome"] != "passed" and verdict(row) != "outcome":
            reasons[f"{row['stock']['outcome']}: {_short(row['stock']['why'])}"] += 1
    if not reasons:
        return []
    lines = [f"| {count} | {reason} |" for reason, count in reasons.most_common()]
    return ["Tests that do not pass in either, stock or ours:", "", "| tests | why |", "| --- | --- |", *lines, ""]


def _short(why: str) -> str:
    return why.replace("|", "/")[:150].replace("<", "&lt;")


def _apart(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say of each difference what it is."""
    apart = [row for row in rows if verdict(row) not in ("same", "trains nothing")]
    if not apart:
        return ["No test differs.", ""]
    lines = []
    for row in apart:
        name = row["test"].split("::")[0 if row["host"] == "transformers" else -1]
        lines.append(f"| {row['host']}: `{name}` | {' | '.join(_difference(row))} |")
    return ["Each that differs:", "", "| test | what | reason |", "| --- | --- | --- |", *lines, ""]


def _difference(row: dict[str, Any]) -> tuple[str, str]:
    """Return what differs, and why."""
    known, kind = REASONS.get(row["test"], ""), verdict(row)
    if kind == "outcome":
        return f"{row['stock']['outcome']} stock, {row['nll']['outcome']} under nll", known or _short(
            row["nll"]["why"]
        )
    if kind == "not put":
        return "`nll` not put", known or "; ".join(one for one in row["under"] if one != "nll")
    apart = f"weights, by {row['gap']:.1e}"
    if kind == "rounding":
        return apart, f"rounding: stock with the sums of its loss in float64 is {row['rounding']:.1e} from stock"
    return apart, known or "**unknown**"


REASONS = {
    "SFTTrainerTester::test_train_dft_loss": "it trains TRL's own `loss_type: dft`, and was given `nll` in its place"
}
"""Of tests that differ, where their own words do not tell."""
