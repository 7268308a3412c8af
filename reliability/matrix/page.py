"""The page of the lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reliability.matrix import names
from reliability.matrix.lines import Line, Lines

MEASURED = ("loss", "weights", "statistics")
MUTATED = {
    "reduction": "statistics are not summed over ranks",
    "divisor": "a rank divides by its own targets, not by those of all ranks",
    "mask": "the last target of each batch is left out",
    "guard": "nobody looks whether a step's loss was ours",
}
HEAD = """# The same step in every split

Written by `python -m reliability.matrix page` from [matrix.jsonl](matrix.jsonl), one line a cell. `nox -s matrix` runs
the cells that have no line.

Each row is a way to split a run over processes, each column something that a run may be made of. A cell trains a tiny
model for three steps (SGD, gloo, CPU) in the Trainer of transformers, with `loss: dft` and the row's real engine below
it, and compares every rank with one process that takes the same rows. The number is the largest relative difference of
the logged loss, of the weights after the third step (each tensor by its largest entry) and of `dft/*`. Allowed is
{tolerance:g}, in float32, where a row does not say more. `dft/effective_tokens`, (sum w)^2 / sum w^2, counts with a
quarter of its difference: it is four times as far off as its weights can be. Compared are the bfloat16 row with one
process under the same policy, all others with the plain model.

| in a cell | means |
| --- | --- |
| a number | within the tolerance |
| **differs** | not within it: a fault |
| refused | stopped by our error, the same on every rank; its text is below |
| impossible | the engine itself stops with the stock loss as well, in the same run without us; its error is below |
| not run | no line yet |

On a CPU, accelerate turns `fsdp=` and `deepspeed=` into DDP. So the engines are called directly, in the place where
accelerate would call them: `fully_shard`, `FullyShardedDataParallel`, `deepspeed.initialize`, `parallelize_module`,
and `from_pretrained(distributed_config=...)` of transformers.
"""


def text(lines: Lines) -> str:
    """Return the page."""
    cells = lines.all()
    notes = _Notes()
    parts = [HEAD.format(tolerance=names.TOLERANCE), _count(cells), _table(cells, notes), notes.text()]
    return "\n".join([*parts, _per_row(cells), _stock(cells), _mutations(lines)]).rstrip() + "\n"


class _Notes:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, said: str) -> int:
        return self._numbers.setdefault(said, len(self._numbers) + 1)

    def text(self) -> str:
        listed = [f"{number}. {_plain(said)}" for said, number in self._numbers.items()]
        return "\n".join(["", "## What was said", "", *listed, ""]) if listed else ""


def _plain(said: str) -> str:
    return "`" + said.replace("`", "'").replace("|", "/") + "`"


def _count(cells: Mapping[tuple[str, str], Line]) -> str:
    kinds = [line["outcome"] for line in cells.values()]
    every = len(names.ROWS) * len(names.COLUMNS)
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(sorted(kinds)))
    red = sum(names.is_red(line) for line in cells.values())
    return f"{len(kinds)} of {every} cells were run: {counted}. Faults: {red}.\n"


def _table(cells: Mapping[tuple[str, str], Line], notes: _Notes) -> str:
    head = ["row", "processes", *names.COLUMNS]
    rows = [_line(head), _line(["---"] * len(head))]
    for row in names.ROWS:
        found = [_cell(cells.get((row.name, column)), notes) for column in names.COLUMNS]
        rows.append(_line([row.name, str(row.world), *found]))
    return "\n".join(rows) + "\n"


def _cell(line: Line | None, notes: _Notes) -> str:
    if line is None:
        return "not run"
    outcome = line["outcome"]
    if outcome == names.EQUAL:
        return f"{max(line[key] for key in MEASURED):.0e}".replace("0e+00", "0")
    if outcome == names.DIFFERS:
        return f"**differs** {max((line[key] for key in MEASURED if key in line), default=0.0):.0e}"
    note = f"{outcome} ({notes.of(line['text'])})"
    return f"**{note}**" if names.is_red(line) else note


def _per_row(cells: Mapping[tuple[str, str], Line]) -> str:
    head = ["row", "loss", "weights", "`dft/*`", "tolerance", "seconds of all cells"]
    rows = ["## The largest difference of each row", "", _line(head), _line(["---"] * len(head))]
    for row in names.ROWS:
        of = [line for (name, _), line in cells.items() if name == row.name]
        equal = [line for line in of if line["outcome"] == names.EQUAL]
        if equal:
            worst = [f"{max(line[key] for line in equal):.1e}" for key in MEASURED]
            seconds = f"{sum(line.get('seconds', 0) for line in of):.0f}"
            rows.append(_line([row.name, *worst, f"{row.tolerance:g}", seconds]))
    return "\n".join(rows) + "\n"


def _stock(cells: Mapping[tuple[str, str], Line]) -> str:
    apart = {key: line for key, line in cells.items() if line["outcome"] == names.DIFFERS and line.get("stock")}
    rows = []
    for (row, column), line in apart.items():
        gaps = line["stock"].get("gaps") or {}
        if gaps:
            rows.append(
                _line([row, column, *(f"{one.get(key, 0):.1e}" for one in (line, gaps) for key in MEASURED[:2])])
            )
    if not rows:
        return ""
    head = ["row", "column", "loss", "weights", "loss, stock", "weights, stock"]
    return "\n".join(
        ["## Where a cell differs, beside the stock loss", "", _line(head), _line(["---"] * 6), *rows, ""]
    )


def _mutations(lines: Lines) -> str:
    rows = [_line(["broken in every rank", "cells of the diagonal that turn red", "of them"]), _line(["---"] * 3)]
    impossible = {key for key, line in lines.all().items() if line["outcome"] == names.IMPOSSIBLE}
    for mutation, what in MUTATED.items():
        found = [line for key, line in lines.all(mutation).items() if key not in impossible]
        red = [line for line in found if names.is_red(line)]
        shown = "; ".join(f"{line['row']}: {line['column']}" for line in red[:3]) + (" ..." if len(red) > 3 else "")
        rows.append(_line([what, f"{len(red)} of {len(found)}" if found else "not run", shown]))
    said = (
        "`python -m reliability.matrix mutate` breaks one thing at a time and runs the diagonal (a cell of each row)."
    )
    return "\n".join(["## Does it notice?", "", said, "", *rows, ""])


def _line(words: Iterable[str]) -> str:
    return "| " + " | ".join(words) + " |"
