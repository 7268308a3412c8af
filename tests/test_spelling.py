"""Every word and key of `loss:` that is nearly right brings the right one."""

from __future__ import annotations

import pytest

from dft_plugin.cli.checking import left_to_the_run
from dft_plugin.config.parsing import parse_settings
from dft_plugin.config.plugins import build_catalogue, build_manager
from dft_plugin.config.settings import Settings
from dft_plugin.config.spelling import closest
from dft_plugin.errors import SettingsError
from dft_plugin.objectives import FAMILY

OBJECTIVES = {kind.name: kind for kind in FAMILY}
RAMP = {"from": 0.0, "to": 1.0, "until": 0.3}


def problems(value):
    with pytest.raises(SettingsError) as error:
        parse_settings(value, objectives=OBJECTIVES, kernels=("chunked", "blocked", "reference"))
    return list(error.value.problems)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("DTF", "dft"),
        ({"nmae": "eaft"}, "name"),
        ({"name": "Focal_"}, "focal"),
        ({"kernel": "chunkd"}, "chunked"),
        ({"scratchmb": 3}, "scratch_mb"),
        ({"alpah": 1.0}, "alpha"),
        ({"always_learn": ["eoss"]}, "eos"),
        ({"always_learn": "Special"}, "special"),
        ({"always_learn": [3, "add"]}, "added"),
        ({"log": ["entrpy"]}, "entropy"),
        ({"log": "top_1"}, "top1"),
        ({"weights": {"colums": "x"}}, "column"),
        ({"weights": {"token": {3: 2.0}}}, "tokens"),
        ({"weigths": {"column": "x"}}, "weights"),
        ({"name": "prift", "by": "massy"}, "mass"),
        ({"name": "iw_sft", "per": "tokens"}, "token"),
        ({"first": {"name": "nl", "for": 3}}, "nll"),
        ({"first": {"name": "nll", "four": 3}}, "for"),
        ({"first": {"name": "dft", "for": 3, "flor": 0.1}}, "floor"),
        ({"alpha": {"from": 0, "to": 1, "untill": 0.3}}, "until"),
    ],
)
def test_what_is_nearly_right_brings_what_is_right(given, meant):
    assert any(f"Did you mean `{meant}`?" in problem for problem in problems(given))


def test_a_first_without_its_name_finds_it():
    assert "`loss.first.nmae`: is `name` meant?" in problems({"first": {"nmae": "nll", "for": 3}})


def test_what_is_like_nothing_brings_the_list_alone():
    assert problems({"log": ["perplexity"]}) == ["`loss.log.0: 'perplexity'`: Input should be 'top1' or 'entropy'."]
    assert problems({"weights": {"q": 1, "column": "x"}}) == [
        "`loss.weights.q: 1`: there is no such key. Allowed: column, tokens."
    ]


def test_another_case_is_near_and_what_is_no_text_is_not():
    assert closest("EOS", ["eos", "added"]) == "eos"
    assert closest("eos", ["EOS", True]) == "EOS"
    assert closest(7, ["7"]) is None


def test_a_reference_that_is_nearly_a_word_may_be_a_path_and_is_asked_about():
    catalogue = build_catalogue(build_manager(third_party=False))
    (said,) = left_to_the_run(Settings(name="prift", reference="colums"), catalogue)
    assert said.endswith("Did you mean `columns`?")
    (said,) = left_to_the_run(Settings(name="prift", reference="org/model"), catalogue)
    assert said.endswith("and stops without it.")


@pytest.mark.parametrize(
    ("given", "can"),
    [
        ({"name": "prift", "by": RAMP}, "threshold"),
        ({"name": "iw_sft", "per": RAMP}, "temperature"),
        ({"name": "thresholded", "keep": {"from": "above", "to": "below", "until": 9}}, "threshold"),
    ],
)
def test_a_choice_that_is_ramped_brings_the_options_that_can_be(given, can):
    (problem,) = problems(given)
    (option,) = given.keys() - {"name"}
    assert problem.startswith(
        f"`loss.{option}` cannot change during the run: a choice, a switch or a count is one value."
    )
    assert problem.endswith(f"Options of `{given['name']}` that can: {can}.")


def test_a_ramp_with_none_of_its_keys_brings_them():
    assert problems({"alpha": {"start": 0, "end": 1}}) == [
        "`loss.alpha: {'start': 0, 'end': 1}`: a number is needed; one that changes has the keys `from`, `to` and "
        "`until`."
    ]
