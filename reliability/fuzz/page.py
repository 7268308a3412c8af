"""docs/reliability/fuzz.md, made of its rows and of what was found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reliability.fuzz.found import FOUND
from reliability.fuzz.targets import TARGETS
from reliability.fuzz.verdict import CPU_SECONDS

Row = dict[str, Any]

HEAD = """# Bad input

Cases made at random, each held to one property: a right answer, or an error of ours that says what was given. Never
a wrong number, a hang, memory without bound, or a traceback that is not ours. Written by
`python -m reliability.fuzz page` from [fuzz.jsonl](fuzz.jsonl).

    nox -s tests -- tests/reliability/test_fuzz.py   {in_tests:,} cases, the same ones each time; part of `make test`
    nox -s fuzz                                      a million, counted and resumable; -- --guided: those of atheris

Right answers come from elsewhere: losses and gradients from float64; files from PyYAML and `json` as the hosts call
them; command lines from the same override in another spelling; settings from what another process reads of what was
written down; objectives from their formula. A case hangs when it has computed for {seconds:g} s, and a run may hold
6 GiB.

"""


def read(path: Path) -> list[Row]:
    """Return the rows; a line that was cut off is none."""
    if not path.exists():
        return []
    return list(_whole(path.read_text(encoding="utf-8").splitlines()))


def _whole(lines: Iterable[str]) -> Iterable[Row]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def written(rows: list[Row]) -> str:
    """Return the page."""
    head = HEAD.format(in_tests=sum(one.in_tests for one in TARGETS.values()), seconds=CPU_SECONDS)
    return head + _counts(rows) + _found(rows)


def _counts(rows: list[Row]) -> str:
    lines = [
        "## Counts\n",
        "*Guided* cases are bytes that atheris (libFuzzer) chose by the code that they reach; the others are drawn by"
        " hypothesis.\n",
        "| target | what is random | cases | of these guided | answered | refused, by our errors | faults |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, target in TARGETS.items():
        of = [row for row in rows if row["target"] == name]
        guided = _sum([row for row in of if row["engine"] == "atheris"], "cases")
        counts = [f"{_sum(of, key):,}" for key in ("answered", "refused", "faults")]
        lines.append(f"| `{name}` | {target.said} | {_sum(of, 'cases'):,} | {guided:,} | {' | '.join(counts)} |")
    total = [f"{_sum(rows, key):,}" for key in ("answered", "refused", "faults")]
    guided = _sum([row for row in rows if row["engine"] == "atheris"], "cases")
    lines.append(f"| all | | {_sum(rows, 'cases'):,} | {guided:,} | {' | '.join(total)} |")
    peak = max((row["peak_mib"] for row in rows), default=0)
    hours = _sum(rows, "seconds") / 3600
    return "\n".join(lines) + f"\n\n{hours:.1f} hours of one core; the largest process had {peak:,} MiB.\n\n"


def _sum(rows: list[Row], key: str) -> Any:
    return sum(row[key] for row in rows)


def _found(rows: list[Row]) -> str:
    lines = [
        "## What was found\n",
        "Each was mended where it came from, and stays as a case in `reliability/fuzz/found.py`, which tests run."
        " The faults of the counts above are among them; most were found by shorter runs before.\n",
        "| target | given | what happened |",
        "| --- | --- | --- |",
        *(f"| `{one.target}` | {one.given} | {one.happened} |" for one in FOUND),
    ]
    still = [found for row in rows for found in row["found"] if not _mended(found)]
    said = "".join(f"\n- `{one['kind']}`: {one['said']}" for one in still)
    return "\n".join(lines) + "\n" + (f"\nNot mended:\n{said}\n" if still else "")


def _mended(found: Mapping[str, str]) -> bool:
    return any(found["kind"] == kind and said in found["said"] for one in FOUND for kind, said in one.counted)
