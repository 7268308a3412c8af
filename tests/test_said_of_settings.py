"""What is trained and logged stands in one line: of `dft check`, and at the start of a run. No field is forgotten."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel
from support import tiny

from dft_plugin.config.plugins import build_catalogue, build_manager
from dft_plugin.config.settings import First, Settings
from dft_plugin.hf import tokens
from dft_plugin.hf.attachment import attach_plan
from dft_plugin.hf.reference import missing
from dft_plugin.hf.startup import startup_line

CATALOGUE = build_catalogue(build_manager(third_party=False))

BASE = {"name": "dft"}
FIRST = {"name": "nll", "for": 20}
COMPARED = {"name": "prift"}

CHANGED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "name": (BASE, {"name": "eaft"}),
    "kernel": (BASE, {**BASE, "kernel": "reference"}),
    "scratch_mb": (BASE, {**BASE, "scratch_mb": 77}),
    "first": (BASE, {**BASE, "first": FIRST}),
    "first.name": ({**BASE, "first": FIRST}, {**BASE, "first": {**FIRST, "name": "eaft"}}),
    "first.until": ({**BASE, "first": FIRST}, {**BASE, "first": {**FIRST, "for": 0.2}}),
    "first.options": (
        {**BASE, "first": {"name": "focal", "for": 20}},
        {**BASE, "first": {"name": "focal", "for": 20, "gamma": 3.5}},
    ),
    "always_learn": (BASE, {**BASE, "always_learn": [5]}),
    "weights": (BASE, {**BASE, "weights": {"column": "ratio"}}),
    "weights.column": ({**BASE, "weights": {"column": "ratio"}}, {**BASE, "weights": {"column": "other"}}),
    "weights.tokens": (
        {**BASE, "weights": {"column": "ratio"}},
        {**BASE, "weights": {"column": "ratio", "tokens": {5: 2.5}}},
    ),
    "reference": (COMPARED, {**COMPARED, "reference": "copy"}),
    "log": (BASE, {**BASE, "log": ["top1"]}),
    "resume": (BASE, {**BASE, "resume": "allow"}),
    "nonfinite": (BASE, {**BASE, "nonfinite": "skip"}),
    "options": (BASE, {**BASE, "alpha": 0.7}),
    "options, ramped": ({**BASE, "alpha": 0.7}, {**BASE, "alpha": {"from": 0.7, "to": 0.9, "until": 0.3}}),
}
"""For each field what is written without and with it, or with another value."""


def fields(model: type[BaseModel], above: str = "") -> set[str]:
    """Name every field, also of what stands in one."""
    found = set()
    for name, field in model.model_fields.items():
        found.add(above + name)
        for kind in get_args(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= fields(kind, f"{name}.")
    return found


def test_each_field_of_the_settings_is_tried_below():
    there = fields(Settings)
    assert {"first.until", "weights.tokens"} <= there
    assert First.model_config["extra"] == "allow"  # hence first.options, which is no field
    assert there | {"first.options", "options, ramped"} == set(CHANGED)


def checked(loss: dict[str, Any]) -> str:
    return CATALOGUE.settings(loss).line()


def started(loss: dict[str, Any]) -> str:
    model = tiny.llama()
    read = tokens.read(CATALOGUE.plan(CATALOGUE.settings(loss)), model)
    assert not read.problems
    if missing(read.plan, model):
        # A run is refused, and says so.
        return "refused"
    attachment = attach_plan(model, read.plan)
    return startup_line(attachment, "Trainer", tokens=read.said)


@pytest.mark.parametrize("line", [checked, started])
@pytest.mark.parametrize("field", CHANGED)
def test_a_field_that_was_changed_shows(field, line):
    without, changed = CHANGED[field]
    assert line(without) != line(changed)


def test_all_of_it_in_one_line_of_a_check():
    assert checked(
        {
            "name": "prift",
            "by": "mass",
            "threshold": {"from": 0.0, "to": 0.5, "until": 30},
            "first": {"name": "focal", "gamma": 3, "for": 0.29},
            "always_learn": ["eos", 7],
            "weights": {"column": "ratio", "tokens": {"</think>": 2.0, 11: 0.5}},
            "reference": "copy",
            "log": ["top1", "entropy"],
            "scratch_mb": 64,
        }
    ) == (
        "prift(by=mass, threshold=0->0.5 until step 30) after focal(gamma=3) until 29 % of the run, kernel auto; "
        "scratch 64 MiB; reference: copy; always learned: eos, 7; weights: column `ratio`, `</think>` x 2, 11 x 0.5; "
        "logs dft/top1, dft/entropy"
    )


def test_all_of_it_in_the_start_up_line():
    loss = {**BASE, "log": "entropy", "scratch_mb": 64, "always_learn": [7], "weights": {"tokens": {11: 0.5}}}
    assert started(loss) == (
        "dft: loss dft(alpha=1.0, floor=0.0) is on for LlamaForCausalLM (Trainer): kernel chunked; scratch 64 MiB; "
        "always learned: 1 token (ids 7); weights: 11 x 0.5; logs dft/entropy"
    )


def test_of_many_the_first_are_shown_and_the_rest_counted():
    assert checked({**BASE, "always_learn": list(range(9))}).endswith("always learned: 0, 1, 2, 3, 4 and 4 more")
