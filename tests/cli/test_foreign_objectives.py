"""`dft check` tries somebody else's objective before a run trusts it, and does not wait for that with ours."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import pytest
from pydantic import Field

from dft_plugin.cli import checking
from dft_plugin.config.plugins import Entry, build_catalogue
from dft_plugin.objectives import Number, Objective


class Theirs(Objective):
    """Sound only with a factor up to 1."""

    name: ClassVar[str] = "theirs"
    summary: ClassVar[str] = "w = 1 - factor * p"
    source: ClassVar[str] = "none"

    factor: Number = Field(0.5, ge=0, description="Of p.")

    def weight(self, rows):
        if self.factor == 7:
            raise OSError("a file is gone")
        return 1 - self.factor * rows.logp_T.exp()


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Check a TRL config with a loss, where `Theirs` is installed."""
    catalogue = build_catalogue()
    both = {**catalogue.objectives, "theirs": Entry(Theirs, "a-plugin:theirs")}
    monkeypatch.setattr(checking, "build_catalogue", lambda: type(catalogue)(both, catalogue.kernels, catalogue.hosts))

    def run(loss):
        path = tmp_path / "sft.yaml"
        path.write_text(f"model_name_or_path: m\ndataset_name: d\nloss: {loss}\n")
        return checking.check(path, host_name="trl").problems

    return run


@pytest.mark.parametrize(
    "loss",
    [
        "theirs",
        "{name: theirs, factor: {from: 0.0, to: 1.0, until: 0.3}}",
        "{name: dft, first: {name: theirs, for: 3}}",
    ],
)
def test_a_sound_one_is_no_problem(check, loss):
    assert check(loss) == []


@pytest.mark.parametrize(
    "loss",
    [
        "{name: theirs, factor: 2}",
        "{name: theirs, factor: {from: 2.0, to: 0.5, until: 0.3}}",
        "{name: theirs, factor: {from: 0.5, to: 2.0, until: 0.3}}",
        "{name: dft, first: {name: theirs, factor: 2, for: 3}}",
    ],
    ids=["as it is", "at the beginning of a ramp", "at its end", "first"],
)
def test_what_it_does_not_keep_is_a_problem_that_names_the_plugin(check, loss):
    (problem,) = check(loss)
    assert problem.startswith(
        "the objective `theirs` of the plugin a-plugin:theirs is not sound: weights below 0 unlearn; allowed only "
    )
    assert problem.endswith("or choose another loss: `dft losses`.")


def test_an_error_of_its_own_is_a_problem_too(check):
    (problem,) = check("{name: theirs, factor: 7}")
    assert "failed with OSError: a file is gone" in problem


def test_ours_are_checked_without_the_suite(tmp_path):
    (tmp_path / "sft.yaml").write_text("model_name_or_path: m\ndataset_name: d\nloss: eaft\n")
    code = "import sys; from pathlib import Path; from dft_plugin.cli.checking import check\n"
    code += "assert check(Path('sft.yaml'), host_name='trl').problems == []\n"
    code += "assert 'dft_plugin.testing' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
