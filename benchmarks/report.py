"""From the numbers of a run to a page of the docs."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import verdicts
from benchmarks.problem import MIB, Shape
from benchmarks.shares import ATTENTION, BODY, HEAD, LOGITS, REST
from benchmarks.timing import BARE

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

ANOTHER_LOSS = 0.01
"""Relative error of the loss from which on it is not rounding; bfloat16's is below 0.003."""

Numbers = dict[str, dict[str, Any]]
"""Case to what was found, with `time` and `memory` each a mapping from a variant's name."""


def load(folder: Path) -> Numbers:
    """Read what `run` wrote, by case."""
    found: Numbers = {}
    for path in sorted(folder.glob("*-*.json")):
        kind, data = path.stem.split("-", 1)[0], json.loads(path.read_text())
        if kind in ("time", "memory"):
            entry = found.setdefault(data["case"], {"shape": data["shape"], "time": {}, "memory": {}})
            entry[kind] = data["numbers"]
    return found


def render(folder: Path) -> str:
    """Return the page, without its prose."""
    numbers, facts = load(folder), json.loads((folder / "machine.json").read_text())
    lines = [
        f"Measured on {facts['day']}: {facts['device']}. Python {facts['python']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        + f". Command: `{facts.get('command', 'not noted')}`.",
        "",
        "## The table",
        "",
        *verdicts.table(numbers),
    ]
    plain = {key: case for key, case in numbers.items() if not key.startswith("growth")}
    for case in plain.values():
        lines += ["", f"## {case['shape']['title']}", "", *_section(case)]
    lines += ["", "## Growth", "", *_growth(numbers)]
    end_to_end = sorted(folder.glob("steps-*.json"))
    if end_to_end:
        lines += ["", "## A training step of SmolLM2-135M with LoRA", "", *_steps(end_to_end)]
    if of_steps := sorted(folder.glob("shares-*.json")):
        lines += _shares(of_steps)
    return "\n".join(lines) + "\n"


def spread(values: list[float], unit: str = "") -> str:
    """Return the median, and the range where there is more than one value."""
    text = f"{median(values):.2f}{unit}"
    return text if len(values) == 1 else f"{text} ({min(values):.2f} to {max(values):.2f})"


def _section(case: dict[str, Any]) -> list[str]:
    shape = Shape(**{key: value for key, value in case["shape"].items() if key in Shape.__dataclass_fields__})
    time, memory = case["time"], case["memory"]
    bare = time.get(BARE)
    lines = [str(shape) + (f"; bare GEMMs: {bare['cut']}" if bare else "") + ".", ""]
    lines += ["| | seconds | times the bare GEMMs | extra memory, MiB | error of the loss | of the gradients |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for name in dict.fromkeys([*time, *memory]):
        timed, weighed = time.get(name, {}), memory.get(name, {})
        missing = timed.get("missing") or weighed.get("missing")
        if missing and not timed.get("seconds"):
            lines.append(f"| {name} | not here: {missing.replace('|', ' ')} | | | | |")
            continue
        took = timed.get("seconds", [])
        ratios = verdicts.ratios(took, bare["seconds"]) if bare and name != BARE else []
        errors = timed.get("errors", {})
        gradients = ", ".join(f"{key} {value:.1e}" for key, value in errors.items() if key != "loss")
        cells = [
            f"{name} (**computes something else**)" if errors.get("loss", 0.0) > ANOTHER_LOSS else name,
            spread(took) if took else "",
            spread(ratios) if ratios else "",
            f"{weighed['bytes'] / MIB:,.0f}" if "bytes" in weighed else (weighed.get("missing", "")[:80]),
            f"{errors['loss']:.1e}" if errors else "",
            gradients,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _growth(numbers: Numbers) -> list[str]:
    lines = ["| head | N | V | H | seconds | times the bare GEMMs | ns per token and word | extra memory, MiB |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    points = [case for key, case in numbers.items() if key.startswith("growth")]
    order = ("trained", "vocab", "tokens")
    for case in sorted(points, key=lambda case: [case["shape"][key] for key in order]):
        shape = case["shape"]
        (name,) = (name for name in case["memory"] or case["time"] if name != BARE)
        took = case["time"].get(name, {}).get("seconds", [])
        bare = case["time"].get(BARE, {}).get("seconds", [])
        beyond = case["memory"].get(name, {}).get("bytes", 0) - shape["gradient_bytes"]
        cells = [
            "trained" if shape["trained"] else "frozen",
            f"{shape['tokens']:,}",
            f"{shape['vocab']:,}",
            str(shape["hidden"]),
            spread(took) if took else "",
            spread(verdicts.ratios(took, bare)) if took else "",
            f"{median(took) / shape['tokens'] / shape['vocab'] * 1e9:.2f}" if took else "",
            f"{beyond / MIB:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "Memory of a trained head is that beyond the gradient of its weight."]


def _steps(paths: list[Path]) -> list[str]:
    lines = ["| host | loss | seconds per step | times the host's SFT | extra memory, MiB |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for path in paths:
        data = json.loads(path.read_text())
        sft = data["runs"][0]["seconds"]
        for run in data["runs"]:
            ratio = f"{median(run['seconds']) / median(sft):.2f}"
            extra = f"{median(run['bytes']) / MIB:,.0f}"
            lines.append(f"| {data['host']} | {run['name']} | {spread(run['seconds'])} | {ratio} | {extra} |")
    return [*lines, "", str(json.loads(paths[0].read_text())["what"])]


def _shares(paths: list[Path]) -> list[str]:
    parts = (HEAD, LOGITS, BODY, ATTENTION, REST)
    lines = [f"| host | {' | '.join(parts)} |", "| --- " * (len(parts) + 1) + "|"]
    for path in paths:
        data = json.loads(path.read_text())
        seconds = [data["parts"].get(part, 0.0) for part in parts]
        lines.append(f"| {' | '.join([data['host'], *(f'{part / sum(seconds):.0%}' for part in seconds)])} |")
    why = (
        "One step of the host's own SFT, by torch's profiler. A loss saves the passes over logits, and of the head's "
        "GEMMs those of rows without a target; here every token is one."
    )
    return ["", "What such a step is made of:", "", *lines, "", why]


def write_between_marks(path: Path, text: str) -> None:
    """Replace what stands between the marks, and leave what a person wrote around them."""
    block = f"{BEGIN}\n{text}{END}\n"
    if path.exists() and BEGIN in (old := path.read_text()):
        before, rest = old.split(BEGIN, 1)
        path.write_text(before + block + rest.split(END, 1)[1].lstrip("\n"))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {path.stem}\n\n{block}")
