"""`python -m reliability.scale count` (two and four gloo processes), then `python -m reliability.scale page`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
ROWS, PAGE = DOCS / "reliability" / "scale.jsonl", DOCS / "scale.md"


def main(given: list[str]) -> None:
    """Count what processes send, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m reliability.scale", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    count = commands.add_parser("count", help="write docs/reliability/scale.jsonl")
    count.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    commands.add_parser("page", help="write docs/scale.md")
    words = parser.parse_args(given)
    if words.command == "count":
        keep([row for ranks in words.ranks for row in rows(ranks)], words.ranks)
        return
    from reliability.scale import page

    PAGE.write_text(page.text(read()), encoding="utf-8")


def rows(ranks: int) -> list[dict[str, Any]]:
    """Count in some processes; a row for each case, stock or ours, with the collectives of each step."""
    from reliability.scale.ranks import counted

    made = []
    for name, steps in counted(ranks).items():
        case, _, who = name.partition(" | ")
        made.append({"ranks": ranks, "case": case, "who": who, "steps": steps})
    return made


def read() -> list[dict[str, Any]]:
    """Return the rows that there are."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()]


def keep(made: list[dict[str, Any]], ranks: list[int]) -> None:
    """Write rows in the place of those of as many ranks."""
    others = [row for row in read() if row["ranks"] not in ranks] if ROWS.is_file() else []
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in [*others, *made]))


if __name__ == "__main__":
    main(sys.argv[1:])
