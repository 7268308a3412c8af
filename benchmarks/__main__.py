"""`python -m benchmarks run`, then `python -m benchmarks report`. See docs/benchmarks/README.md."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks import machine, memory, report, timing
from benchmarks.cases import TIMED, WEIGHED, Case, cases
from benchmarks.gpu import hour
from benchmarks.gpu.part import PARTS
from benchmarks.gpu.sheet import Options
from benchmarks.problem import Shape

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)
OUT = Path("benchmarks/out")


def _say(text: str) -> None:
    console.print(text, highlight=False)


def _chosen(found: dict[str, Case], keys: tuple[str, ...], wanted: list[str]) -> list[Case]:
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    matching = [case for key, case in found.items() if key.startswith(tuple(keys)) and case.isa == isa]
    return [case for case in matching if not wanted or case.key.startswith(tuple(wanted))]


@app.command()
def run(
    case: Annotated[
        list[str] | None, typer.Option("--cases", "--case", help="Only cases that begin with this; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Of ours and of the bare products.")] = 3,
    peer_rounds: Annotated[int, typer.Option(help="Of the peers.")] = 1,
    threads: Annotated[int, typer.Option(help="Of a CPU; one, so that ratios are not about scheduling.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    tokens: int = Shape.tokens,
    hidden: int = Shape.hidden,
    vocab: int = Shape.vocab,
    out: Annotated[Path, typer.Option(help="Where the numbers go, one file for each case.")] = OUT,
    time: Annotated[bool, typer.Option(help="Measure time.")] = True,
    weigh: Annotated[bool, typer.Option("--memory/--no-memory", help="Measure memory.")] = True,
) -> None:
    """Measure the kernels and their peers, and write the numbers down."""
    torch.set_num_threads(threads)
    shape = Shape(tokens=tokens, hidden=hidden, vocab=vocab, device=device)
    found, wanted = cases(shape), case or []
    out.mkdir(parents=True, exist_ok=True)
    facts = {**machine.facts(device), "threads": threads, "shape": asdict(shape), "day": date.today().isoformat()}
    facts["command"] = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    (out / "machine.json").write_text(json.dumps(facts, indent=1))
    for item in _chosen(found, TIMED, wanted) if time else []:
        numbers = timing.measure(item, rounds=_rounds(item, shape, rounds), peer_rounds=peer_rounds, say=_say)
        _save(out / f"time-{item.key}.json", item, numbers)
    for item in _chosen(found, WEIGHED, wanted) if weigh else []:
        weighed: dict[str, dict[str, Any]] = {}
        for variant in item.variants:
            weighed[variant.name] = memory.measure(item, variant.name, shape, threads)
            _say(f"{item.key}: {variant.name}: {weighed[variant.name]}")
        _save(out / f"memory-{item.key}.json", item, weighed)


def _rounds(case: Case, shape: Shape, rounds: int) -> int:
    """How often a case is timed.

    Of the growth, the points with the most tokens take most of the time and vary least. What a reference adds is the
    difference of two times, so it varies most.
    """
    if case.key == "family":
        return rounds + 2
    if not case.key.startswith("growth"):
        return rounds
    return 1 if case.shape.tokens > shape.tokens else min(rounds, 2)


def _save(path: Path, case: Case, numbers: dict[str, Any]) -> None:
    shape = {**asdict(case.shape), "title": case.title, "gradient_bytes": _gradient_bytes(case)}
    path.write_text(json.dumps({"case": case.key, "shape": shape, "numbers": numbers}, indent=1))


def _gradient_bytes(case: Case) -> int:
    """Bytes of the gradients that any loss must make: of the weight, and of a LoRA branch."""
    shape = case.shape
    weight = shape.vocab * shape.hidden if shape.trained else 0
    return shape.bytes_each * (weight + (shape.vocab + shape.tokens) * shape.rank)


@app.command("report")
def write_report(
    folder: Annotated[Path, typer.Option(help="Where `run` put the numbers.")] = OUT,
    into: Annotated[Path | None, typer.Option(help="The file; by default docs/benchmarks/<day>-<device>.md")] = None,
) -> None:
    """Write what was measured as a page of the docs."""
    text = report.render(folder)
    facts = json.loads((folder / "machine.json").read_text())
    into = into or Path("docs/benchmarks") / f"{facts['day']}-{facts['shape']['device']}.md"
    report.write_between_marks(into, text)
    _say(f"wrote {into}")


@app.command()
def gpu(
    device: Annotated[str, typer.Option(help="cuda or cuda:N; or cpu, in order to test it.")] = "cuda",
    small: Annotated[bool, typer.Option("--small", help="Sizes at which the numbers mean nothing.")] = False,
    minutes: Annotated[float, typer.Option(help="For all parts; what has no time left is named.")] = 9.0,
    part: Annotated[
        list[str] | None, typer.Option("--parts", "--part", help="Only these, in this order; may be repeated.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The page, its one result; where it is there, -2, -3 ... is added to the name.")
    ] = OUT / "gpu.md",
) -> None:
    """Measure everything that needs a GPU, each part in a process of its own, into one page."""
    _require_parts(part or [])
    _require_device(device)
    if not minutes > 0:
        raise typer.BadParameter(f"--minutes {minutes:g}: more than 0 is needed; 9 is enough for all parts")
    page = _new_page(out)
    if page != out:
        _say(f"{out} is there, and stays as it is; this measurement goes to {page}")
    with tempfile.TemporaryDirectory() as folder:
        ends = hour.take(Options(device, small, folder), part or list(PARTS), page, minutes, _say)
    _say(f"wrote {page}")
    if any(ends.values()):
        raise typer.Exit(1)


def _new_page(out: Path) -> Path:
    if out.is_dir():
        raise typer.BadParameter(f"--out {out} is a folder. Name a file, as {out / 'gpu.md'}")
    try:
        return hour.new_page(out)
    except OSError as error:
        raise typer.BadParameter(
            f"--out {out} cannot be written ({error}). Name a file in a folder of yours"
        ) from error


def _require_parts(names: list[str]) -> None:
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        near = {match for name in unknown for match in get_close_matches(name.lower(), PARTS, n=1)}
        hint = f" Did you mean {' and '.join(sorted(near))}?" if near else ""
        raise typer.BadParameter(f"no part {', '.join(unknown)}.{hint} There are {', '.join(PARTS)}")


def _require_device(name: str) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name not in allowed:
        seen = "" if count else "; torch sees no CUDA device. To test the benchmark: --device cpu --small"
        raise typer.BadParameter(f"--device {name}: allowed here: {', '.join(allowed)}{seen}")


if __name__ == "__main__":
    app()
