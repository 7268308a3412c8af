"""`dft losses`: a table that can be read, and one loss explained from what it declares. Nothing here starts a host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import yaml
from pydantic import Field
from typer.testing import CliRunner

from dft_plugin.cli import app as commands
from dft_plugin.cli.explaining import explain
from dft_plugin.config.plugins import Entry, build_catalogue, build_manager
from dft_plugin.errors import UnknownNameError
from dft_plugin.objectives import FAMILY, Number, Objective, Rank

CATALOGUE = build_catalogue(build_manager(third_party=False))


@dataclass(frozen=True)
class Wide:
    """A statistic of whole rows."""

    name: str = "wide"

    def __call__(self, logits_CV, targets_C):
        return logits_CV.amax(1)


class Mine(Objective):
    """Weighs by [everything].

    And more than
    that.
    """

    name: ClassVar[str] = "mine"
    summary: ClassVar[str] = "w = [p]"
    source: ClassVar[str] = "here; and there"
    needs: ClassVar[frozenset] = frozenset({"entropy", Rank()})
    columns: ClassVar[frozenset[str]] = frozenset({"ratio"})
    divisor: ClassVar[str] = "weights"
    statistics: ClassVar[tuple[str, ...]] = ("share",)

    ids: tuple[int, ...] = Field(description="Which.")
    factor: Number = Field(0.25, gt=0, lt=3, description="By how much.")
    per: Literal["token", "sequence", "batch"] = Field("token", description="Over what.")
    loud: bool = Field(False, description="Whether.")
    word: str | None = Field(None, description="Or not.")

    @property
    def scope(self):
        return self.per


@pytest.fixture
def run(monkeypatch):
    """Run a command where `Mine` is installed too."""
    both = {**CATALOGUE.objectives, "mine": Entry(Mine, "theirs:mine")}
    catalogue = type(CATALOGUE)(both, CATALOGUE.kernels, CATALOGUE.hosts)
    monkeypatch.setattr(commands, "build_catalogue", lambda: catalogue)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *words: CliRunner().invoke(commands.app, list(words))


def test_the_table_names_every_loss_with_its_options_within_80_columns(run):
    lines = run("losses").output.splitlines()
    assert max(map(len, lines)) <= 80
    for kind in [*FAMILY, Mine]:
        (first,) = [number for number, line in enumerate(lines) if line.startswith(f"│ {kind.name} ")]
        below = "\n".join(lines[first : first + 6])
        for option in kind.model_fields:
            assert f" {option} (" in below
        assert kind.source.split(";")[0][:12] in below
    assert "factor (0.25)" in "\n".join(lines)
    assert "w = [p]" in "\n".join(lines)
    assert "from theirs:mine" in "\n".join(lines)


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.name)
def test_a_loss_is_explained_with_all_that_it_says_of_itself(run, kind):
    done = run("losses", kind.name)
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 80
    said = " ".join(done.output.replace("│", " ").split())
    assert kind.summary in said
    assert kind.source in said
    assert kind.helps in said
    for name, field in kind.model_fields.items():
        assert name in said
        for word in field.description.split():
            assert word in said


@pytest.mark.parametrize("kind", [*FAMILY, Mine], ids=lambda kind: kind.name)
def test_every_example_is_a_line_that_is_accepted(kind):
    found = explain(Entry(kind, "somebody"))
    assert found.examples
    known = {**{one.name: one for one in FAMILY}, "mine": Mine}
    catalogue = type(CATALOGUE)({n: Entry(k, "x") for n, k in known.items()}, CATALOGUE.kernels, CATALOGUE.hosts)
    for line in found.examples:
        assert catalogue.settings(yaml.safe_load(line)["loss"]).name == kind.name


def costs(kind):
    return explain(Entry(kind, "somebody")).cost


def by_name(name):
    return CATALOGUE.objectives[name].item


def test_costs_are_those_that_are_declared():
    assert costs(by_name("dft")) == ()
    assert costs(by_name("idft")) == ("the entropy of each row, summed up beside the softmax",)
    assert costs(by_name("eaft")) == ("the statistic `top20` of each row, made block by block",)
    assert costs(by_name("asft")) == (
        "a frozen reference: one forward pass of it more, and its logits beside the model's, in chunks",
    )
    assert costs(by_name("thresholded")) == (
        "gradients are scaled once more at the end of each step, when its divisor is known",
    )


def test_a_cost_that_hangs_on_a_choice_says_on_which():
    reference = "of a frozen reference: one forward pass of it more, or computed beforehand (`dft reference`)"
    assert costs(by_name("prift")) == (
        f"with `by: prob` the column `ref_logp`, {reference}",
        f"with `by: mass` the column `ref_mass`, {reference}",
    )
    assert costs(by_name("iw_sft")) == (
        f"the column `ref_logp`, {reference}",
        "with `per: sequence` weights look at whole sequences: a second sweep over the head where that is trained",
    )


def test_a_loss_of_somebody_else_is_explained_as_ours_are(run):
    found = json.loads(run("losses", "mine", "--json").output)
    assert found["owner"] == "theirs:mine"
    assert found["about"] == ["Weighs by [everything].", "And more than that."]
    assert found["helps"] == ""
    assert found["logs"] == ["dft/share"]
    assert found["divisor"] == "the sum of the weights over the optimizer step"
    assert found["cost"] == [
        "the entropy of each row, summed up beside the softmax",
        "the statistic `rank` of each row, made from whole rows: `chunked` runs where `blocked` would",
        "the column `ratio`, a number for each token, which the data must hold",
        "gradients are scaled once more at the end of each step, when its divisor is known",
        "with `per: sequence` weights look at whole sequences: a second sweep over the head where that is trained",
        "with `per: batch` weights look at the whole step: a second sweep over a trained head, and no split of the "
        "step",
    ]
    assert [option["allowed"] for option in found["options"]] == [
        "list of integers",
        "number > 0 and < 3",
        "token or sequence or batch",
        "true or false",
        "text or nothing",
    ]
    assert [option["required"] for option in found["options"]] == [True, False, False, False, False]
    said = run("losses", "mine").output
    assert "must be given" in said
    assert "[everything]" in said
    assert "theirs:mine" in said


def test_json_of_all_is_a_list(run):
    every = json.loads(run("losses", "--json").output)
    assert [one["name"] for one in every] == [*(kind.name for kind in FAMILY), "mine"]


def test_a_name_that_is_not_known_is_an_error_with_the_closest_one(run):
    error = run("losses", "eaf").exception
    assert isinstance(error, UnknownNameError)
    assert str(error).startswith("no loss is called `eaf`. Did you mean `eaft`? Known: dft, nll, eaft, ")
    assert "Did you mean" not in str(run("losses", "xyzzy").exception)
