"""docs/reliability/load.md, made of its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reliability.load import plots, sizes

Row = dict[str, Any]

HEAD = """# Load

Long runs and large sizes on a CPU, one thread. Written by `python -m reliability.load page` from
[load.jsonl](load.jsonl); measured by `nox -s load`. Times are those of a machine that was shared, and are no
benchmark: see [the benchmarks](../benchmarks/README.md) for those.

"""


def read(path: Path) -> list[Row]:
    """Return the rows; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def pictures(rows: list[Row]) -> dict[str, str]:
    """Return the pictures by the name of their file."""
    plain = [row for row in rows if row["part"] in ("soak stock", "soak dft")]
    traced = [row for row in rows if row["part"] == "soak traced"]
    drawn = [(plain, measure) for measure in ("resident_mib", "objects", "files")] + [(traced, "ours_kib")]
    return {f"load-{measure}.svg": plots.picture(of, measure) for of, measure in drawn if of}


def written(rows: list[Row]) -> str:
    """Return the page."""
    by_part = {row["part"]: row for row in rows}
    return "".join([HEAD, _soaks(by_part), _pictures(rows), _logs(by_part), _attaching(by_part), _sizes(by_part)])


def _soaks(by_part: dict[str, Row]) -> str:
    lines = [
        "## Thousands of steps\n",
        "A tiny model in the plain Trainer, a log every ten steps. *Growth* is the median of"
        " the last third less that of the first third, after a warm-up of a fifth. `stock` is the same run without our"
        " loss: the Trainer keeps each log in `state.log_history`, with ours or without.\n",
        "| run | steps | resident memory, MiB | objects of Python | open files | held by lines of dft_plugin, KiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in ("soak stock", "soak dft", "soak traced"):
        if row := by_part.get(name):
            growth, traced = row["growth"], " (allocations followed)" if row["traced"] else ""
            cells = [
                f"{row['loss']}{traced}",
                f"{row['steps']:,}",
                *_grown(growth, "resident_mib", "objects", "files"),
            ]
            lines.append(f"| {' | '.join([*cells, *_grown(growth, 'ours_kib')])} |")
    return "\n".join(lines) + "\n\n"


def _grown(growth: dict[str, float], *keys: str) -> list[str]:
    """Return numbers with their sign; those of whole things without a fraction."""
    return [
        "" if key not in growth else f"{growth[key]:+,.{0 if key in ('objects', 'files') else 2}f}" for key in keys
    ]


def _pictures(rows: list[Row]) -> str:
    said = {f"load-{measure}.svg": title for measure, title in plots.MEASURES.items()}
    return "".join(f"![{said[name]}]({name})\n\n" for name in pictures(rows))


def _logs(by_part: dict[str, Row]) -> str:
    ours, stock = by_part.get("soak dft"), by_part.get("soak stock")
    if not ours or not stock:
        return ""
    more = ours["log_ms"] - stock["log_ms"]
    step = 1000 * stock["seconds"] / stock["steps"]
    share = 100 * more / ours["logging_steps"] / step
    return (
        "## What a log costs\n\n"
        f"The Trainer's method that logs took {stock['log_ms']:.2f} ms with its own loss and {ours['log_ms']:.2f} ms "
        f"with ours (medians): {more:.2f} ms more. With a log every ten steps that is {share:.1f} % of a step of this "
        f"tiny model ({step:.1f} ms), and under 1 % of any step of {10 * more:.0f} ms or more. A step waits for "
        "the device where the stock one does and nowhere else: `tests/attachment/test_waits.py`.\n\n"
    )


def _attaching(by_part: dict[str, Row]) -> str:
    lines = [
        "## Attached and detached\n",
        "On one model, and on one trainer, with several losses in turn. *Growth* is over the second half of the"
        " times.\n",
        "| what | times | ms each | held by lines of dft_plugin, KiB | objects of Python | open files | left behind |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name in ("attach", "activate"):
        if row := by_part.get(name):
            grown = _grown(row["growth"], "ours_kib", "objects", "files")
            cells = [row["what"], f"{row['times']:,}", f"{row['ms']:.1f}", *grown, ", ".join(row["left"]) or "nothing"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nAfter the last detach the model answers with its own loss, to the bit.\n\n"


def _sizes(by_part: dict[str, Row]) -> str:
    lines = [
        "## Sizes\n",
        "Against float64 in chunks; gaps are relative norms. *Added* is by how much the peak of the process rose in"
        " loss and gradient, the gradients themselves included; all logits at once, in float32, would take what the"
        " column behind it says.\n",
        "| what | tokens | vocabulary | hidden size | largest gap | added, MiB | logits, MiB | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in sizes.CASES:
        if row := by_part.get(name):
            given = [name, f"{row['tokens']:,}", f"{row['vocab']:,}", str(row["width"])]
            memory = [f"{row['added_mib']:,.0f}", f"{row['logits_mib']:,.0f}", f"{row['seconds']:.2f}"]
            lines.append(f"| {' | '.join([*given, format(max(row['gaps'].values()), '.1e'), *memory])} |")
    return "\n".join(lines) + "\n"
