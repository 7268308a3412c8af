"""Trainer tests of TRL and transformers, from their source distributions, stock and with `nll` under each trainer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.downstream import names
from reliability.downstream.environments import CHECKOUT, Environment

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Suite:
    """Tests of one source distribution.

    Attributes:
        name: of the suite.
        sdist: requirement that `pip download` gets.
        member: file in it that is taken.
    """

    name: str
    sdist: str
    member: str


SUITES = (
    Suite("TRL", "trl==0.23.1", "tests/test_sft_trainer.py"),
    Suite("transformers", "transformers==5.24.0", "tests/test_training_mixin.py"),
)


def download(suite: Suite, folder: Path) -> Path:
    """Get the file of a suite out of its source distribution, which pip downloads into a folder."""
    name, _, version = suite.sdist.partition("==")
    archive = folder / f"{name}-{version}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", suite.sdist]
        subprocess.run([*command, "-d", folder], check=True)
    with tarfile.open(archive) as opened:
        file = opened.extractfile(f"{name}-{version}/{suite.member}")
        assert file is not None
        path = folder / Path(suite.member).name
        path.write_bytes(file.read())
    return path


def run(suite: Suite, given: Path, made: dict[str, Environment], work: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Run a suite stock and under `nll`, and yield one row for each test.

    Args:
        suite: to run.
        given: the environment with TRL and dft-plugin, in which the stand-ins for the hub are made.
        made: its three environments; `stock` and `installed` are used.
        work: an empty folder.
        folder: where source distributions are, or will be.
    """
    path = download(suite, folder)
    home = work / "hub"
    home.mkdir(parents=True)
    shutil.copytree(PROGRAMS, work / "programs")
    target = work / "programs" / "test_overfit.py"
    if suite.name == "TRL":
        variables = {**os.environ, **names.OFFLINE, "PYTHONPATH": str(CHECKOUT)}
        subprocess.run([given / "bin" / "python", "-m", "reliability.downstream.hub", home], check=True, env=variables)
        target = work / "programs" / "trl_tests" / path.name
        shutil.copy(path, target)
    modes = MODES if suite.name == "TRL" else {**MODES, "float64": "stock"}
    found = {mode: _pytest(mode, made[kind], target, path, home, work) for mode, kind in modes.items()}
    for test in sorted(found["stock"].keys() | found["nll"].keys()):
        yield {"part": "suite", "host": suite.name, "test": test.split("::", 1)[-1], **compared(test, found, work)}


MODES = {"stock": "stock", "nll": "installed"}


def _pytest(mode: str, environment: Environment, target: Path, mixin: Path, home: Path, work: Path) -> dict[str, Any]:
    """Run pytest in one of the two ways; return what the plugin wrote."""
    out = work / mode
    words = ["-q", "-p", "under", "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir", str(work), str(target)]
    done = environment.run(
        "python",
        "-m",
        "pytest",
        *words,
        cwd=home,
        **names.OFFLINE,
        PYTHONPATH=str(work / "programs"),
        UNDER=mode,
        UNDER_OUT=str(out),
        UNDER_MIXIN=str(mixin),
        ACCELERATE_USE_CPU="true",
        RUN_TRAINING_TESTS="1",
    )
    print(mode, done.stdout[-400:], done.stderr[-400:], flush=True)
    tests: dict[str, Any] = json.loads((out / "tests.json").read_text())
    return tests


def compared(test: str, found: dict[str, dict[str, Any]], work: Path) -> dict[str, Any]:
    """Return outcomes and trainings of a test, and how far the weights are apart."""
    stock, ours = (found[mode].get(test, {}) for mode in MODES)
    row: dict[str, Any] = {}
    for mode, one in (("stock", stock), ("nll", ours)):
        row[mode] = {"outcome": one.get("outcome", "none"), "why": _anywhere(one.get("why", ""), work)}
    trainings = ours.get("trainings", [])
    row["trained"] = [len(stock.get("trainings", [])), len(trainings)]
    row["trainer"] = sorted({f"{one['trainer']}, {one['model']}" for one in trainings})
    row["under"] = sorted({one["under"] for one in trainings})
    row["ended"] = sorted({one["ended"] for one in trainings})
    pairs = list(zip(stock.get("trainings", []), trainings, strict=False))
    apart = [gap(work / "stock" / mine["weights"], work / "nll" / theirs["weights"]) for mine, theirs in pairs]
    twice = found.get("float64", {}).get(test, {}).get("trainings", [])
    rounded = zip(stock.get("trainings", []), twice, strict=False)
    own = [gap(work / "stock" / one["weights"], work / "float64" / other["weights"])[0] for one, other in rounded]
    row["rounding"] = max(own, default=None)
    row["gap"] = max((size for size, _ in apart), default=None)
    row["finite"] = all(finite for _, finite in apart)
    return row


def _anywhere(why: str, work: Path) -> str:
    """Return an error's words without the folder of this run."""
    return why.replace(str(work), "...").replace(str(work.parent), "...")


def gap(first: Path, second: Path) -> tuple[float, bool]:
    """Return the largest difference between two files of weights, and whether the first is of finite numbers."""
    import torch

    one, other = (torch.load(path, weights_only=True) for path in (first, second))
    if one.keys() != other.keys():
        return float("inf"), True
    gaps = [_apart(one[name], other[name]) for name in one if one[name].numel()]
    return max(gaps, default=0.0), all(bool(value.isfinite().all()) for value in one.values())


def _apart(one: Any, other: Any) -> float:
    """Return the largest difference; what is no number in one of them alone is infinitely far."""
    far = (one - other).abs()
    far[one.isnan() & other.isnan()] = 0
    return float(far.nan_to_num(float("inf"), float("inf")).max())
