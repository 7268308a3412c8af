"""One rank of one start of processes: `python -m reliability.matrix.ranks WORK.json`.

A start costs far more than a cell, so all cells of a start run in turn; one that fails is reported, and the rest goes
on.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers

from dft_plugin.errors import DftError
from reliability.matrix import names
from reliability.matrix.cell import Cell, NotMadeError, Trained, train
from reliability.matrix.compare import gaps
from reliability.matrix.mutations import MUTATIONS

GO_ON_WITHOUT_ME = 75
"""Exit code: the ranks are not together any more, and what is left wants a fresh start."""

ALONE = 60
"""Seconds after which a rank that failed takes it that the others have not, and wait for it."""
BROKEN = "Timed out", "Connection closed", "Connection reset", "Broken pipe"
"""What gloo says of a group that is of no use any more."""


@dataclass
class Outcome:
    """What one rank saw of one cell."""

    kind: str
    text: str = ""
    gaps: dict[str, float] | None = None


class Rank:
    """This process.

    Args:
        work: as `launch` writes it.
    """

    def __init__(self, work: dict[str, Any]) -> None:
        self.folder, self.limit = Path(work["folder"]), int(work["limit"])
        self.number, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.mutated = bool(work["mutation"])
        self.said = 0

    def run(self, row: names.Row, column: str) -> dict[str, Any]:
        """Return the line of one cell, the same on every rank."""
        begun = time.monotonic()
        cell = Cell(column, row.engine, row.shares, row.experts)
        outcome = self.agree(self.attempt(cell, row))
        line = {
            "row": row.name,
            "column": column,
            "outcome": outcome.kind,
            "text": outcome.text,
            **(outcome.gaps or {}),
        }
        if outcome.kind in (names.FAILED, names.DIFFERS) and not self.mutated:
            stock = self.agree(self.attempt(Cell(column, row.engine, row.shares, row.experts, True), row))
            if stock.kind == names.FAILED:
                line |= {"outcome": names.IMPOSSIBLE, "text": stock.text}
            line["stock"] = asdict(stock)
        return {**line, "seconds": round(time.monotonic() - begun, 1)}

    def attempt(self, cell: Cell, row: names.Row) -> Outcome:
        """Train one cell, and compare."""
        with (self.folder / f"stacks-{self.number}.txt").open("w") as stacks:
            faulthandler.dump_traceback_later(self.limit, exit=True, file=stacks)
            try:
                trained = train(cell, self.folder / f"cell-{self.number}", self.world)
                return self.compared(trained, cell, row)
            except DftError as error:
                return Outcome(names.REFUSED, said(error))
            except NotMadeError as error:
                return Outcome(names.IMPOSSIBLE, f"the model cannot be made: {' '.join(str(error).split())[:350]}")
            except Exception as error:
                traceback.print_exc()
                return Outcome(names.FAILED, said(error))
            finally:
                faulthandler.cancel_dump_traceback_later()

    def compared(self, trained: Trained, cell: Cell, row: names.Row) -> Outcome:
        """Compare with one process, by the row's own tolerance."""
        if cell.column == names.BYPASSED:
            return Outcome(names.DIFFERS, "trained to the end without our loss")
        file = reference(self.folder, cell, row)
        if cell.stock and not file.exists():
            return Outcome(names.EQUAL, "trained")
        if not file.exists():
            raise RuntimeError("one process cannot train it either")
        found = gaps(trained, torch.load(file, weights_only=False))
        return Outcome(names.EQUAL if row.allows(found) else names.DIFFERS, gaps=found)

    def agree(self, outcome: Outcome) -> Outcome:
        """Return what all ranks saw: the worst of it. Ends this process where they went apart."""
        self.said += 1
        place = self.folder / "said"
        place.mkdir(exist_ok=True)
        mine = place / f"{self.said}-{self.number}.part"
        mine.write_text(json.dumps(asdict(outcome)))
        mine.rename(mine.with_suffix(".json"))
        files = [place / f"{self.said}-{rank}.json" for rank in range(self.world)]
        alone = outcome.kind in (names.FAILED, names.REFUSED)
        until = time.monotonic() + (ALONE if alone else self.limit + 30)
        while not all(file.exists() for file in files):
            if time.monotonic() > until:
                os._exit(GO_ON_WITHOUT_ME)
            time.sleep(0.02)
        every = [Outcome(**json.loads(file.read_text())) for file in files]
        kinds = {one.kind for one in every}
        worst = next(
            kind
            for kind in (names.FAILED, names.IMPOSSIBLE, names.REFUSED, names.DIFFERS, names.EQUAL)
            if kind in kinds
        )
        first = next(one for one in every if one.kind == worst)
        measured = [one.gaps for one in every if one.gaps]
        if len(kinds & {names.FAILED, names.REFUSED}) and len(kinds) > 1:
            return Outcome(names.FAILED, f"not alike on all ranks: {[one.kind for one in every]}, {first.text}")
        joined = {key: max(one[key] for one in measured) for key in measured[0]} if measured else None
        return Outcome(worst, first.text, joined)


def said(error: BaseException) -> str:
    """Return an error in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def reference(folder: Path, cell: Cell, row: names.Row) -> Path:
    """Return where the run of one process is, that a cell is compared with."""
    words = (row.alike or "one", cell.column, cell.shares, cell.experts, cell.stock)
    return folder.parent / "references" / ("-".join(map(str, words)).replace(" ", "_") + ".pt")


def make_references(folder: Path, cells: list[tuple[names.Row, str]], stock_too: bool) -> None:
    """Train in this one process what cells are compared with."""
    for row, column in cells:
        for stock in (False, True)[: 1 + stock_too]:
            cell = Cell(column, row.alike, row.shares, row.experts, stock)
            file = reference(folder, cell, row)
            if file.exists() or column == names.BYPASSED:
                continue
            file.parent.mkdir(exist_ok=True)
            try:
                torch.save(train(cell, folder / "cell-0", 1), file)
            except Exception:
                print(f"no reference for {row.name}, {column}", file=sys.stderr)
                traceback.print_exc()


def main(path: str) -> None:
    """Run what a file asks for."""
    work = json.loads(Path(path).read_text())
    cells = [(names.row_named(row), column) for row, column in work["cells"]]
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    faulthandler.enable()
    limit = datetime.timedelta(seconds=work["limit"])
    dist.init_process_group("gloo", timeout=limit)
    folder = Path(work["folder"])
    if work["references"]:
        make_references(folder, cells, work["stock"])
        return
    if work["mutation"]:
        MUTATIONS[work["mutation"]]()
    rank = Rank(work)
    for row, column in cells:
        line = rank.run(row, column)
        # Whoever waits in a collective of a rank that is gone would wait for ever.
        line["parted"] = line["outcome"] == names.FAILED or any(word in line["text"] for word in BROKEN)
        if rank.number == 0:
            with (folder / "lines.jsonl").open("a") as lines:
                lines.write(json.dumps(line) + "\n")
        if line["parted"]:
            os._exit(GO_ON_WITHOUT_ME)
    # Some engines leave threads behind that outlive the interpreter.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
