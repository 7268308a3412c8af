"""docs/reliability/faults.md: what was done, what happened, what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reliability.faults.cells import CELLS, DISK, HOSTS, KILLED, RANK, TERM, TESTED
from reliability.faults.hosts import STEPS

Row = dict[str, Any]

HEAD = f"""\
# Faults

Made by `python -m reliability.faults page` from `faults.jsonl`, whose rows `nox -s faults` makes; each cell is a run
of the host itself, on a CPU, with tiny models. A straight run has {STEPS} steps and saves each; the run that comes to
harm is gone on from its last checkpoint that is whole. Compared are all losses, rates and `dft/*` of the log (relative
to 1 or to the value, whichever is larger), and the weights at the end. 0 says that every digit is the same.

A checkpoint whose writing was cut off has no `trainer_state.json`, and going on from it stops with
`FileNotFoundError`. The trainer takes it for its newest one all the same: name the one before it in
`resume_from_checkpoint`. verl goes by `latest_checkpointed_iteration.txt`, which it writes last.
"""

WORDS = {
    KILLED: (
        "Killed (SIGKILL)",
        "In a step and at a place that are drawn anew in each run: in the forward pass, before the optimizer steps, "
        "right after a checkpoint. With a loss that changes from step to step.",
    ),
    RANK: (
        "One of two ranks is lost",
        "Two processes (gloo) without a launcher, which would end the other one by itself; the group was made with a "
        "timeout of 20 s, since transformers drops `ddp_timeout` where `use_cpu` is set. The other rank must end with "
        "an error, and nothing may look like a checkpoint of the step that failed.",
    ),
    DISK: (
        "No room on the disk",
        "From step 4 on no file may grow beyond 4 kB (`RLIMIT_FSIZE`: the tests run as a user for whom no folder is "
        "read-only). The host's own error must be shown, and the checkpoint of step 3 be good.",
    ),
    TERM: (
        "Told to end (SIGTERM)",
        "As a preempted run is. What the host does by itself is what happens; with `enable_jit_checkpoint` "
        "transformers saves first.",
    ),
}

PLACES = {
    "forward": "in the forward pass",
    "optimizer": "before the optimizer steps",
    "saving": "between the weights and the state of a checkpoint",
    "saved": "after its checkpoint",
}


def render(rows: Sequence[Row]) -> str:
    """Return the page."""
    parts = [HEAD, *(_section(fault, [row for row in rows if row["fault"] == fault]) for fault in WORDS)]
    parts += [_tested(heading) for heading in TESTED]
    return "\n".join([*parts, _missing(rows), _versions(rows)])


def _section(fault: str, rows: Sequence[Row]) -> str:
    title, said = WORDS[fault]
    table = [
        "| host | model | what | step | exit codes | last words | gone on from | losses | weights | lost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_line, rows),
    ]
    return f"## {title}\n\n{said}\n\n" + "\n".join(table) + "\n"


def _line(row: Row) -> str:
    step = f"{row['step']}, {PLACES[row['where']]}"
    cut = f" (step {row['cut_off'][-1]} was cut off)" if row.get("cut_off") else ""
    last = f"step {row['whole'][-1]}{cut}" if row.get("whole") else "nothing"
    gaps = [f"{row[key]:.0e}" if row.get(key) else "0" if key in row else "" for key in ("losses", "weights")]
    lost = "nothing" if row["passed"] else f"**{row['problem']}**"
    said = row["said"].replace("|", "\\|") if any(code > 0 for code in row["ended"]) else ""
    codes = ", ".join(map(str, row["ended"]))
    cells = [row["host"], row["kind"], row["what"], step, codes, said, last, *gaps, lost]
    return f"| {' | '.join(cells)} |"


def _tested(heading: str) -> str:
    lines = [f"| {what} | `tests/{test}` |" for what, test in TESTED[heading]]
    return (
        f"## {heading}\n\nTests, in every run of `make test`.\n\n| what | test |\n| --- | --- |\n"
        + "\n".join(lines)
        + "\n"
    )


def _missing(rows: Sequence[Row]) -> str:
    made = {row["key"] for row in rows}
    missing = [cell.key for cell in CELLS if cell.key not in made]
    if not missing:
        return ""
    return "## Not run\n\n" + "".join(f"- {key}\n" for key in missing)


def _versions(rows: Sequence[Row]) -> str:
    said = []
    for host in HOSTS:
        found = next((row["versions"] for row in rows if row["host"] == host), None)
        if found:
            said.append(f"- {host}: {', '.join(f'{name} {version}' for name, version in found.items())}\n")
    return "## Run with\n\n" + "".join(said)
