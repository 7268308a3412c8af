"""docs/reliability/downstream.md, of the rows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from reliability.downstream import suites_page, trainings
from reliability.downstream.names import FORMS, HOSTS

TITLES = {
    "transformers": "transformers.Trainer",
    "trl": "TRL",
    "axolotl": "Axolotl",
    "axolotl021": "Axolotl, newest",
    "llamafactory": "LLaMA-Factory",
    "swift": "ms-swift",
    "verl": "verl",
    "unsloth": "Unsloth",
}
COMMANDS = {
    "transformers": "a script",
    "trl": "`trl sft`",
    "axolotl": "`axolotl train`",
    "axolotl021": "`axolotl train`",
    "llamafactory": "`llamafactory-cli train`",
    "swift": "`swift sft`",
    "verl": "`python -m verl.trainer.sft_trainer`",
    "unsloth": "a script",
}
RUNS = {
    "stock, again": "stock, once more",
    "installed": "installed",
    "autoload": "autoload",
    "asked for": "`loss: dft`",
}
Rows = Sequence[dict[str, Any]]


def text(rows: Rows) -> str:
    """Return the page."""
    words = Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
    parts = {"trainings": _trainings(rows), "left_out": _left_out(rows), "startup": _startup(rows)}
    made = words.substitute({**parts, "suites": suites_page.text(rows)})
    return "\n".join(line.rstrip() for line in made.rstrip().splitlines()) + "\n"


def write(rows: Rows, path: Path) -> None:
    """Write it."""
    path.write_text(text(rows), encoding="utf-8")


def _trainings(rows: Rows) -> str:
    lines = [f"| host | | {' | '.join(RUNS.values())} | files | said |", "|" + " --- |" * (len(RUNS) + 4)]
    for host in HOSTS:
        for form in FORMS:
            here = [row for row in rows if row["part"] == "training" and (row["host"], row["form"]) == (host, form)]
            found = {row["run"]: row for row in here}
            if "stock" in found:
                lines.append(_training(host, form, found, rows))
    return "\n".join(lines)


def _left_out(rows: Rows) -> str:
    """Name what has no rows."""
    there = {(row["host"], row["form"]) for row in rows if row["part"] == "training"}
    missing = [f"{TITLES[host]} {form}" for host in HOSTS for form in FORMS if (host, form) not in there]
    return f"Not run: {', '.join(missing)}. " if missing else ""


def _training(host: str, form: str, found: dict[str, dict[str, Any]], rows: Rows) -> str:
    stock = found["stock"]
    version = next((row["versions"] for row in rows if (row["part"], row["host"]) == ("environment", host)), {})
    name = {"swift": "ms-swift", "axolotl021": "axolotl"}.get(host, host)
    cells = [f"{TITLES[host]} {version.get(name, '')}, {COMMANDS[host]}", "LoRA" if form == "lora" else "full"]
    for run in RUNS:
        cells.append(compared(stock, found[run]) if run in found else "")
    unasked = [found[run] for run in ("installed", "autoload") if run in found]
    cells.append("same" if all(row["files"] == stock["files"] for row in unasked) else "**other files**")
    said = sorted({line for row in unasked for line in row["said"]})
    cells.append("nothing" if not said else "; ".join(said))
    return f"| {' | '.join(cells)} |"


def compared(stock: dict[str, Any], row: dict[str, Any]) -> str:
    """Say in a word what is the same."""
    if stock.get("failed") or row.get("failed"):
        return "**did not run**"
    logs = [trainings.without_clock(one["log"]) for one in (row, stock)]
    parts = {"log": logs[0] == logs[1], "weights": row["weights"] == stock["weights"]}
    if row["run"] == "asked for":
        return "differs" if not any(parts.values()) else "**same**"
    return "same" if all(parts.values()) else f"**other {', '.join(key for key, same in parts.items() if not same)}**"


def _startup(rows: Rows) -> str:
    head = [
        "import",
        "rounds",
        "stock, s",
        "installed, more",
        "autoload, more",
        "modules beyond stock",
        "theirs alone, ms",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for host in HOSTS:
        of_host = [row for row in rows if (row["part"], row["host"]) == ("start-up", host)]
        for module in dict.fromkeys(row["import"] for row in of_host):
            found = {row["run"]: row for row in of_host if row["import"] == module}
            lines.append(_started(host, module, found))
    return "\n".join(lines)


def _started(host: str, module: str | None, found: dict[str, dict[str, Any]]) -> str:
    stock = found["stock"]["median"]
    more = [found[kind]["median"] - stock for kind in ("installed", "autoload")]
    beyond = [found[kind]["beyond"] for kind in ("installed", "autoload")]
    own = [1000 * found[kind]["own"] for kind in ("installed", "autoload")]
    name = f"{TITLES[host]}: {'nothing' if module is None else f'`{module}`'}"
    cells = [name, str(len(found["stock"]["seconds"])), f"{stock:.2f}", *(f"{1000 * value:+.0f} ms" for value in more)]
    cells += [" / ".join(map(str, beyond)), " / ".join(f"{value:.0f}" for value in own)]
    return f"| {' | '.join(cells)} |"
