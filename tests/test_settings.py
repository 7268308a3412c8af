"""What may stand after `loss:`, and what a user reads when it cannot be used."""

from __future__ import annotations

import json
import math
import re

import pydantic
import pytest

from dft_plugin.config.parsing import parse_settings
from dft_plugin.config.settings import Settings
from dft_plugin.errors import SettingsError
from dft_plugin.objectives import DFT, FAMILY, NLL

OBJECTIVES = {"dft": DFT, "nll": NLL}
KERNELS = ("chunked", "reference")
DFT_KEYS = "alpha, floor, name, kernel, scratch_mb, first, always_learn, weights, reference, log, resume, nonfinite"


def parse(value, where="loss") -> Settings:
    return parse_settings(value, objectives=OBJECTIVES, kernels=KERNELS, where=where)


def problems(value, where="loss") -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse(value, where)
    return list(caught.value.problems)


def test_the_keys_of_settings_are_these():
    # A user's YAML depends on them: add here, and to the changelog, but do not take away.
    assert set(Settings.model_fields) == {
        "name",
        "kernel",
        "scratch_mb",
        "first",
        "always_learn",
        "weights",
        "reference",
        "log",
        "resume",
        "nonfinite",
        "options",
    }


def test_every_key_is_described():
    assert all(field.description for field in Settings.model_fields.values())


def test_a_name_alone_takes_every_default():
    assert parse("nll") == Settings(name="nll", kernel="auto", scratch_mb=None, options={})


def test_a_mapping_without_a_name_is_dft():
    assert parse({}) == parse("dft") == Settings(name="dft")


def test_options_of_the_objective_stand_beside_the_name():
    settings = parse({"name": "dft", "alpha": 0.7, "kernel": "chunked", "scratch_mb": 64})
    assert settings == Settings(name="dft", kernel="chunked", scratch_mb=64, options={"alpha": 0.7})


def test_a_number_that_yaml_reads_as_a_string_is_a_number():
    assert DFT(**parse({"alpha": "1e-2"}).options) == DFT(alpha=0.01)


@pytest.mark.parametrize("kernel", ["auto", "logits", "chunked", "reference"])
def test_a_kernel_may_be_named(kernel):
    assert parse({"kernel": kernel}).kernel == kernel


def test_settings_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        parse("dft").name = "nll"


def test_what_is_given_is_not_changed():
    given = {"name": "dft", "alpha": 0.7}
    parse(given)
    assert given == {"name": "dft", "alpha": 0.7}


def test_describe_is_one_word_or_a_call():
    assert parse("dft").describe() == "dft"
    assert parse({"alpha": 0.7, "floor": 0.1}).describe() == "dft(alpha=0.7, floor=0.1)"


@pytest.mark.parametrize(("value", "kind"), [(True, "bool"), (1.5, "float"), (["dft"], "list")])
def test_what_is_neither_a_name_nor_a_mapping_is_refused(value, kind):
    assert problems(value) == [f"`loss: {value!r}` is a {kind}; write `loss: dft`, or a mapping with `name`."]


def test_an_unknown_name_brings_the_closest_one():
    assert problems("dtf") == ["`loss`: `dtf` is not a known name. Did you mean `dft`? Allowed: dft, nll."]
    assert problems({"name": "dtf", "alpha": 1}) == [
        "`loss.name`: `dtf` is not a known name. Did you mean `dft`? Allowed: dft, nll."
    ]


def test_a_name_that_is_like_no_other_brings_the_list_alone():
    assert problems("focal") == ["`loss`: `focal` is not a known name. Allowed: dft, nll."]


def test_an_unknown_kernel_brings_the_closest_one():
    assert problems({"kernel": "chunk"}) == [
        "`loss.kernel`: `chunk` is not a known name. Did you mean `chunked`? "
        "Allowed: auto, logits, chunked, reference."
    ]


def test_an_unknown_key_brings_the_closest_one():
    assert problems({"alpah": 0.5}) == [
        f"`loss.alpah`: `alpah` is not an option of `dft`. Did you mean `alpha`? Allowed: {DFT_KEYS}."
    ]
    assert problems({"kernal": "auto"}) == [
        f"`loss.kernal`: `kernal` is not an option of `dft`. Did you mean `kernel`? Allowed: {DFT_KEYS}."
    ]


def test_an_option_of_another_objective_is_unknown():
    assert problems({"name": "nll", "alpha": 1}) == [
        "`loss.alpha`: `alpha` is not an option of `nll`. Allowed: "
        "name, kernel, scratch_mb, first, always_learn, weights, reference, log, resume, nonfinite."
    ]


def test_options_cannot_be_nested():
    assert problems({"options": {"alpha": 1}}) == [
        f"`loss.options`: `options` is not an option of `dft`. Allowed: {DFT_KEYS}."
    ]


def test_a_key_that_is_no_string_is_an_unknown_key():
    # YAML 1.1 reads `on:` as True.
    assert problems({True: 1}) == [f"`loss.True`: `True` is not an option of `dft`. Allowed: {DFT_KEYS}."]


MIB = "a whole number of MiB is needed, without quotes, for example 300"


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("alpha", -1, "Input should be greater than or equal to 0. Leave it out for 1.0"),
        ("alpha", math.nan, "Input should be a finite number. Leave it out for 1.0"),
        ("alpha", "inf", "Input should be a finite number. Leave it out for 1.0"),
        ("alpha", True, "a number is needed, not a truth value. Leave it out for 1.0"),
        ("alpha", None, "Input should be a valid number. Leave it out for 1.0"),
        ("floor", 1.5, "Input should be less than or equal to 1. Leave it out for 0.0"),
        ("floor", -0.5, "Input should be greater than or equal to 0. Leave it out for 0.0"),
        ("scratch_mb", 0, "1 MiB or more is needed, for example 300; leave it out for the default"),
        ("scratch_mb", True, MIB),
        ("scratch_mb", "256", MIB),
        ("scratch_mb", 2.5, MIB),
        ("kernel", 3, "Input should be a valid string"),
        ("name", False, "Input should be a valid string"),
    ],
)
def test_an_impossible_value_is_refused_with_the_rule(option, value, rule):
    assert problems({option: value}) == [f"`loss.{option}: {value!r}`: {rule}."]


def test_all_problems_are_reported_at_once():
    given = {"alpha": True, "floor": 2, "kernal": "auto", "kernel": "fast", "scratch_mb": 0}
    assert problems(given) == [
        "`loss.scratch_mb: 0`: 1 MiB or more is needed, for example 300; leave it out for the default.",
        "`loss.kernel`: `fast` is not a known name. Allowed: auto, logits, chunked, reference.",
        f"`loss.kernal`: `kernal` is not an option of `dft`. Did you mean `kernel`? Allowed: {DFT_KEYS}.",
        "`loss.alpha: True`: a number is needed, not a truth value. Leave it out for 1.0.",
        "`loss.floor: 2`: Input should be less than or equal to 1. Leave it out for 0.0.",
    ]


def test_an_unknown_objective_does_not_hide_the_other_problems():
    assert len(problems({"name": "dtf", "scratch_mb": 0, "kernel": "fast"})) == 3


def test_a_problem_names_the_key_that_the_host_uses():
    assert problems("dtf", where="dft.loss") == [
        "`dft.loss`: `dtf` is not a known name. Did you mean `dft`? Allowed: dft, nll."
    ]
    assert problems({"alpha": -1}, where="dft.loss") == [
        "`dft.loss.alpha: -1`: Input should be greater than or equal to 0. Leave it out for 1.0."
    ]


def test_settings_survive_the_way_to_another_process():
    written = parse({"name": "dft", "alpha": 0.5, "kernel": "chunked"}).as_written()
    assert written == {"name": "dft", "kernel": "chunked", "alpha": 0.5}
    assert parse(json.loads(json.dumps(written))).as_written() == written


WRITTEN = {
    "name": "dft",
    "alpha": {"from": 0.0, "to": 1.0, "until": 0.3},
    "first": {"name": "nll", "for": 100},
    "always_learn": ["eos", 7],
    "weights": {"column": "ratio", "tokens": {"</think>": 2.0, "11": 0.5}},
    "scratch_mb": 64,
}


def test_what_changes_during_a_run_survives_the_way_to_another_process():
    settings = parse(WRITTEN)
    assert parse(json.loads(json.dumps(settings.as_written()))) == settings
    assert settings.describe() == "dft(alpha=0->1 until 30 % of the run) after nll until step 100"


def test_a_number_and_its_text_are_two_tokens_in_yaml_and_on_the_way_to_another_process():
    settings = parse({"weights": {"tokens": {11: 2.0, "11": 0.5}}})
    assert settings.weights.tokens == {11: 2.0, "11": 0.5}
    again = parse(json.loads(json.dumps(settings.as_written())))
    assert again.weights.tokens == {11: 2.0, "11": 0.5}
    assert [type(key) for key in again.weights.tokens] == [int, str]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({True: 2.0}, "True is neither an id nor a text; put quotes around what YAML reads as something else"),
        ({None: 2.0}, "None is neither an id nor a text"),
        ({1.5: 2.0}, "1.5 is neither an id nor a text"),
        ({-1: 2.0}, "-1 is no token; an id is 0 or more, and a text is not empty"),
        ({"": 2.0}, "'' is no token"),
        ([[5, 1.0], [5, 2.0]], "5 stands there twice"),
        ([5], r"a mapping of tokens to factors is needed, or a list of pairs: [[11, 2.0]]"),
    ],
)
def test_what_is_no_token_is_refused(given, said):
    with pytest.raises(SettingsError, match=re.escape("`loss.weights.tokens") + ".*" + re.escape(said)):
        parse({"weights": {"tokens": given}})


def test_a_ramp_is_kept_as_it_was_written():
    assert parse(WRITTEN).options["alpha"] == {"from": 0.0, "to": 1.0, "until": 0.3}


def test_an_option_of_first_stands_beside_its_name():
    first = parse({"name": "nll", "first": {"name": "dft", "alpha": 0.5, "for": 0.2}}).first
    assert (first.name, first.options, first.until) == ("dft", {"alpha": 0.5}, 0.2)


@pytest.mark.parametrize("given", ["eos", ["eos"], ["eos", "special", "added", 0, 5], 3, []])
def test_tokens_that_are_always_learned_are_kinds_or_ids(given):
    assert parse({"always_learn": given}).always_learn == tuple(given if isinstance(given, list) else [given])


POINT = "a share of the run lies above 0 and is at most 1.0; write steps as an integer"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"alpha": {"from": 0, "to": 1}}, "`loss.alpha.until` is missing beside {'from': 0, 'to': 1}."),
        ({"alpha": {"from": 0, "to": 1, "until": 1.5}}, f"`loss.alpha.until: 1.5`: {POINT}."),
        ({"alpha": {"from": 0, "to": 1, "until": 0}}, "`loss.alpha.until: 0`: 1 step or more is needed."),
        (
            {"alpha": {"from": 0, "to": True, "until": 3}},
            "`loss.alpha.to: True`: a number is needed, not a truth value.",
        ),
        (
            {"alpha": {"from": -1, "to": 1, "until": 3}},
            "`loss.alpha: -1`: Input should be greater than or equal to 0. Leave it out for 1.0.",
        ),
        (
            {"floor": {"from": 0, "to": 3, "until": 3}},
            "`loss.floor: 3`: Input should be less than or equal to 1. Leave it out for 0.0.",
        ),
        (
            {"first": {"name": "nl", "for": 3}},
            "`loss.first.name`: `nl` is not a known name. Did you mean `nll`? Allowed: dft, nll.",
        ),
        ({"first": {"name": "nll"}}, "`loss.first.for` is missing beside {'name': 'nll'}."),
        (
            {"first": {"name": "nll", "for": 3, "alpha": 1}},
            "`loss.first.alpha`: `alpha` is not an option of `nll`. Allowed: name, for.",
        ),
        (
            {"first": {"name": "dft", "for": 3, "alpha": {"from": 0, "to": 1, "until": 2}}},
            "`loss.first.alpha`: an option of `first` cannot be ramped; give a number.",
        ),
        ({"always_learn": ["eoss"]}, "neither one of eos, special, added nor a token id. Did you mean `eos`?"),
        ({"always_learn": [-1]}, "-1 is neither one of eos, special, added nor a token id."),
        ({"first": "nll"}, "`loss.first: 'nll'`: a mapping is needed, with `name`, `for`."),
        ({"weights": "ratio"}, "`loss.weights: 'ratio'`: a mapping is needed, with `column`, or `tokens`."),
        ({"weights": {}}, "a column or tokens are needed: `{column: ratio}`, or `{tokens: {TOKEN: 2}}`."),
        (
            {"weights": {"tokens": {}}},
            "a column or tokens are needed: `{column: ratio}`, or `{tokens: {TOKEN: 2}}`.",
        ),
        ({"weights": {"column": ""}}, "String should have at least 1 character."),
        (
            {"first": {"name": "nll", "for": 1.0}},
            "nothing would be left for the loss that `name` asks for; a share is below 1.0.",
        ),
        (
            {"weights": {"colum": "x"}},
            "`loss.weights.colum: 'x'`: there is no such key. Did you mean `column`? Allowed: column, tokens.",
        ),
        ({"weights": {"tokens": {"a": -1}}}, "Input should be greater than or equal to 0."),
    ],
)
def test_what_cannot_change_or_weigh_is_refused_with_the_rule(value, says):
    (problem,) = problems(value)
    assert problem.endswith(says)


def parse_any(value):
    return parse_settings(value, objectives={kind.name: kind for kind in FAMILY}, kernels=KERNELS)


@pytest.mark.parametrize("reference", ["base", "start", "copy", "columns", "some/model"])
def test_a_reference_is_a_word_or_a_path(reference):
    settings = parse_any({"name": "prift", "reference": reference})
    assert settings.reference == reference
    assert parse_any(settings.as_written()) == settings


def test_a_reference_may_be_for_the_objective_of_the_beginning():
    first = {"name": "asft", "for": 0.2}
    assert parse_any({"name": "dft", "first": first, "reference": "copy"}).reference == "copy"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "dft", "reference": "base"}, "`loss.reference: base`: `dft` compares with no reference. Drop it."),
        ({"name": "dft", "reference": "base"}, "Those that do: prift, iw_sft, asft, gift."),
        ({"name": "asft", "reference": "columns"}, "`asft` reads the reference's whole distribution, which columns"),
        ({"name": "gift", "reference": ""}, "`loss.reference: ''`"),
        ({"name": "gift", "reference": True}, "`loss.reference: True`"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(given, said):
    with pytest.raises(SettingsError) as error:
        parse_any(given)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "kept"), [("top1", ("top1",)), (["entropy", "top1"], ("entropy", "top1")), ([], ())]
)
def test_more_may_be_logged(given, kept):
    assert parse({"log": given}).log == kept
