"""docs/recipes.md: `page.md`, with tables out of `paper.py`, and the paper's numbers beside ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from recipes import paper
from recipes.hosts import WRITERS

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
"""Runs of these recipes: {"model", "loss", "lora", "scores"}, the scores in the order of the paper's table."""

Ours = Mapping[tuple[str, str, bool], Sequence[float]]
"""Scores by model, loss, and whether it is LoRA."""

TITLES = {model.name: model.title for setting in paper.SETTINGS.values() for model in setting.models}
LOSS_OF = {"base": "", "sft": "nll", "dft": "dft"}


def text() -> str:
    """Return the page."""
    ours = _results()
    parts = {
        "hosts": ", ".join(f"`{host}`" for host in WRITERS),
        "numbers": _numbers(),
        "faults": _table(
            ["switch", "what the released code does"], [[f"`{name}`", said] for name, said in paper.FAULTS.items()]
        ),
        "no_switch": "\n".join(f"- {line}." for line in paper.NO_SWITCH),
        "math": _beside(paper.MATH_RESULTS, paper.BENCHMARKS, ours, with_mean=True),
        "lora": _lora(ours),
        "code": _beside(paper.CODE_RESULTS, paper.CODE_BENCHMARKS, ours),
        "seeing": _beside(paper.SEEING_RESULTS, paper.SEEING_BENCHMARKS, ours),
    }
    page = (HERE / "page.md").read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda found: parts[found[1]], page)


def _numbers() -> str:
    settings = list(paper.SETTINGS.values())
    rows: list[tuple[str, list[object]]] = [
        ("data", [f"{one.rows:,} rows of {one.dataset}" if one.rows else f"all of {one.dataset}" for one in settings]),
        ("sequences a step", [one.batch for one in settings]),
        ("learning rate", [_rate(one) for one in settings]),
        ("warm-up, a share of the steps", [one.warmup for one in settings]),
        ("epochs", [one.epochs for one in settings]),
        ("tokens of a sequence", [one.length for one in settings]),
        ("assumed: no source says it", ["; ".join(one.assumed) for one in settings]),
    ]
    return _table(["", *(one.name for one in settings)], [[name, *map(str, cells)] for name, cells in rows])


def _rate(setting: paper.Setting) -> str:
    others = [f"{model.title} {model.learning_rate:g}" for model in setting.models if model.learning_rate]
    return ", ".join([f"{setting.learning_rate:g}", *others])


def _beside(
    found: Mapping[str, Mapping[str, Sequence[float]]],
    benchmarks: Sequence[str],
    ours: Ours,
    *,
    with_mean: bool = False,
) -> str:
    """Return the paper's numbers, and as many columns of ours."""
    columns = [*benchmarks, *(["mean"] if with_mean else [])]
    rows = []
    for name, kinds in found.items():
        for kind, numbers in kinds.items():
            mine = ours.get((name, LOSS_OF[kind], False))
            shown = [*map(_cell, mine), *([_mean(mine)] if with_mean else [])] if mine else [""] * len(columns)
            title = [TITLES[name], kind] if kind == "base" else ["", kind.upper()]
            rows.append([*title, *map(_cell, numbers), *shown])
    return _table(["model", "", *columns, *(f"{column}, ours" for column in columns)], rows)


def _lora(ours: Ours) -> str:
    rows = [
        [TITLES[name], *map(_cell, found.values()), *(_mean(ours.get((name, LOSS_OF[kind], True))) for kind in found)]
        for name, found in paper.LORA_RESULTS.items()
    ]
    return _table(["model", "SFT", "DFT", "SFT, ours", "DFT, ours"], rows)


def _cell(value: float) -> str:
    return f"{value:.2f}"


def _mean(scores: Sequence[float] | None) -> str:
    return _cell(sum(scores) / len(scores)) if scores else ""


def _results() -> Ours:
    """Return the scores of runs, the last of each kind."""
    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines() if line]
    return {(row["model"], row["loss"], row["lora"]): row["scores"] for row in rows}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
