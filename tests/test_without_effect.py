"""An option that another leaves without effect is refused, by both names; every other option changes something."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal, get_args, get_origin

import pydantic
import pytest
import torch

import dft_plugin
from dft_plugin import Facts
from dft_plugin.cli.checking import foreign_objective_problems
from dft_plugin.config.parsing import parse_settings
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import SettingsError
from dft_plugin.objectives import FAMILY, IWSFT, PriFT, Weighed
from dft_plugin.testing.tokens import logits, reference_logits, tokens_for

NUMBERS = (0.05, 0.3, 0.9, 2.0)


def problems(value: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse_settings(value, objectives={kind.name: kind for kind in FAMILY}, kernels=("chunked", "reference"))
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"name": "prift", "threshold": 0.7},
            "`loss`: `threshold` has no effect with `by: prob`, which is the default. Drop it, or give another `by`: "
            "mass.",
        ),
        (
            {"name": "iw_sft", "per": "token", "temperature": 2},
            "`loss`: `temperature` has no effect with `per: token`. Drop it, or give another `per`: sequence.",
        ),
        (
            {"name": "prift", "threshold": {"from": 0.1, "to": 0.9, "until": 0.5}},
            "`loss`: `threshold` has no effect with `by: prob`, which is the default. Drop it, or give another `by`: "
            "mass.",
        ),
        (
            {"first": {"name": "prift", "for": 3, "threshold": 0.5}},
            "`loss.first`: `threshold` has no effect with `by: prob`, which is the default. Drop it, or give another "
            "`by`: mass.",
        ),
        (
            {"kernel": "logits", "scratch_mb": 8},
            "`loss`: `scratch_mb` has no effect with `kernel: logits`. Drop it, or give another `kernel`.",
        ),
        (
            {"kernel": "reference", "scratch_mb": 8},
            "`loss`: `scratch_mb` has no effect with `kernel: reference`. Drop it, or give another `kernel`.",
        ),
        (
            {"name": "dft", "alpha": 0, "floor": 0.1},
            "`loss`: `floor` has no effect with `alpha: 0`. Drop it, or give another `alpha`.",
        ),
        (
            {"name": "dft", "alpha": 0.5, "floor": 1.0},
            "`loss`: `alpha` has no effect with `floor: 1`. Drop it, or give another `floor`.",
        ),
        (
            {"name": "dft", "alpha": {"from": 0, "to": 1, "until": 0.5}, "floor": 1},
            "`loss`: `alpha` has no effect with `floor: 1`. Drop it, or give another `floor`.",
        ),
        (
            {"name": "eaft", "alpha": 0, "normalizer": 3},
            "`loss`: `normalizer` has no effect with `alpha: 0`. Drop it, or give another `alpha`.",
        ),
        (
            {"name": "idft", "strength": 0, "beta": 2},
            "`loss`: `beta` has no effect with `strength: 0`. Drop it, or give another `strength`.",
        ),
        (
            {"name": "dft", "first": {"name": "dft", "for": 3, "alpha": 0, "floor": 0.5}},
            "`loss.first`: `floor` has no effect with `alpha: 0`. Drop it, or give another `alpha`.",
        ),
        (
            {"name": "dft", "alpha": {"from": 1, "to": 1.0, "until": 0.5}},
            "`loss.alpha: {'from': 1, 'to': 1.0, 'until': 0.5}`: it stays what it is; write 1 in its place.",
        ),
        (
            {"name": "dft", "first": {"name": "dft", "for": 3}},
            "`loss.first`: `dft`, with the same options, is what follows, so that nothing would change. Drop it, or "
            "give another name or other options.",
        ),
        (
            {"name": "dft", "alpha": 1.0, "first": {"name": "dft", "for": 0.5, "floor": 0}},
            "`loss.first`: `dft`, with the same options, is what follows, so that nothing would change. Drop it, or "
            "give another name or other options.",
        ),
        ({"log": ["top1", "entropy", "top1"]}, "`loss.log: ['top1', 'entropy', 'top1']`: 'top1' stands there twice."),
        (
            {"always_learn": [4, 3], "weights": {"tokens": {3: 0, 4: 2}}},
            "`loss.always_learn: 3` gives this token weight 1, and `loss.weights.tokens` multiplies that by 0. Drop "
            "one of them.",
        ),
        ({"always_learn": ["eos", 3, 3]}, "`loss.always_learn: ['eos', 3, 3]`: 3 stands there twice."),
    ],
)
def test_it_is_refused_by_both_names(given, says):
    assert problems(given) == [says]


@pytest.mark.parametrize(
    "given",
    [
        {"name": "prift", "by": "mass", "threshold": 0.7},
        {"name": "prift", "by": "prob"},
        {"name": "iw_sft", "temperature": 2},
        {"kernel": "logits", "scratch_mb": None},
        {"kernel": "chunked", "scratch_mb": 8},
        {"scratch_mb": 8},
        {"name": "dft", "alpha": 0},
        {"name": "dft", "floor": 1},
        # As in a config that writes out all, which a sweep goes over.
        {"name": "dft", "alpha": 0, "floor": 0.0},
        {"name": "dft", "alpha": 1, "floor": 1},
        {"name": "eaft", "alpha": 0},
        # Dead at one end of a ramp alone.
        {"name": "dft", "alpha": {"from": 0, "to": 1, "until": 0.5}, "floor": 0.1},
        {"name": "dft", "alpha": {"from": 1, "to": 0, "until": 0.5}, "floor": 0.1},
        {"name": "dft", "alpha": 0.5, "floor": {"from": 1, "to": 0, "until": 0.5}},
        {"name": "idft", "strength": {"from": 0, "to": 1, "until": 0.5}, "beta": 2},
        {"name": "dft", "first": {"name": "dft", "for": 3, "alpha": 0.5}},
        {"name": "dft", "alpha": {"from": 0, "to": 1, "until": 0.5}, "first": {"name": "dft", "for": 3}},
        {"log": ["top1", "entropy"], "always_learn": ["eos", 3]},
    ],
)
def test_what_has_an_effect_or_was_not_given_is_accepted(given):
    catalogue = build_catalogue()
    settings = catalogue.settings(given)
    assert settings
    # It is made once more for a run, for a check, and in another process.
    assert catalogue.plan(settings)
    assert foreign_objective_problems(settings, catalogue) == []
    assert catalogue.settings(settings.as_written()) == settings


@pytest.mark.parametrize(
    ("given", "read_by"),
    [
        ({"name": "prift"}, "prift"),
        ({"name": "prift", "reference": "columns"}, "prift"),
        ({"name": "dft", "first": {"name": "iw_sft", "for": 2}}, "iw_sft"),
    ],
)
def test_what_an_objective_reads_is_no_factor(given, read_by):
    assert problems({**given, "weights": {"column": "ref_logp"}}) == [
        f"`loss.weights.column: ref_logp` is what `{read_by}` reads, and no factor. Give the factors a column of "
        "another name."
    ]
    assert build_catalogue().settings({**given, "weights": {"column": "ratio"}})


def test_so_it_is_in_python():
    with pytest.raises(pydantic.ValidationError, match="`threshold` has no effect with `by: prob`"):
        PriFT(threshold=0.7)
    with pytest.raises(pydantic.ValidationError, match="`temperature` has no effect with `per: token`"):
        IWSFT(per="token", temperature=1.0)


def limits(field):
    """The values that end the range of an option, where it ends."""
    found = [getattr(limit, name, None) for limit in field.metadata for name in ("ge", "le")]
    return [float(limit) for limit in found if limit is not None]


def at_limits():
    """Every objective with each of its numbers where its range ends, and each other number of it."""
    for kind in FAMILY:
        for other, field in kind.model_fields.items():
            for limit in limits(field):
                for option in kind.model_fields:
                    if option != other and get_origin(kind.model_fields[option].annotation) is not Literal:
                        yield pytest.param(kind, {other: limit}, option, id=f"{kind.name}-{option}-{other}-{limit}")


def modes():
    """Every objective with every choice of its options that are words."""
    for kind in FAMILY:
        words = {
            name: get_args(field.annotation)
            for name, field in kind.model_fields.items()
            if get_origin(field.annotation) is Literal
        }
        for chosen in itertools.product(*words.values()):
            mode = dict(zip(words, chosen, strict=True))
            for option in kind.model_fields:
                if option not in words:
                    yield pytest.param(kind, mode, option, id=f"{kind.name}-{option}-{'-'.join(chosen)}")


def outcome(objective):
    """All that an objective says of tokens, and of a reference's logits."""
    tokens = tokens_for(objective, torch.float64, None)
    made = objective.weigh(tokens.rows, tokens.targets, None)
    made = made if isinstance(made, Weighed) else Weighed(made)
    said = [made.weight_T, made.value_T, made.soft_T, objective.soft_targets(reference_logits(), logits()[1])]
    return torch.cat([one.reshape(-1) for one in said if one is not None]).nan_to_num()


@pytest.mark.parametrize(("kind", "mode", "option"), [*modes(), *at_limits()])
def test_every_number_changes_something_unless_it_is_declared_not_to(kind, mode, option):
    largest = max((limit for limit in limits(kind.model_fields[option]) if limit), default=math.inf)
    # As a schedule sets it, without the check that is asked about here.
    numbers = [number for number in NUMBERS if number <= largest]
    found = [outcome(kind(**mode).model_copy(update={option: number})) for number in numbers]
    changes = any(not torch.equal(found[0], other) for other in found[1:])
    other, without = kind.without_effect.get(option, (None, ()))
    assert changes == (mode.get(other) not in without)


def through_logits(objective, facts=None):
    return dft_plugin.token_loss(torch.randn(3, 5), torch.tensor([0, 1, 2]), objective=objective, facts=facts)


def through_hidden(objective, facts=None):
    hidden, weight = torch.randn(3, 4), torch.randn(5, 4)
    return dft_plugin.linear_token_loss(hidden, weight, torch.tensor([0, 1, 2]), objective=objective, facts=facts)


REFERENCE = "`objective` sets `reference`, which has no effect in this function: it takes what a reference says in "


@pytest.mark.parametrize(
    ("function", "objective", "says"),
    [
        (through_logits, {"kernel": "chunked"}, "`objective` sets `kernel`, which has no effect in this function."),
        (through_logits, {"kernel": "logits"}, "`objective` sets `kernel`, which has no effect in this function."),
        (through_hidden, {"kernel": "logits"}, "`objective` sets `kernel`, which has no effect in this function."),
        (through_logits, {"scratch_mb": 3}, "`objective` sets `scratch_mb`, which has no effect in this function."),
        (through_logits, {"log": "top1"}, "`objective` sets `log`, which has no effect in this function: it writes "),
        (through_hidden, {"log": "top1"}, "`objective` sets `log`, which has no effect in this function: it writes "),
        (through_hidden, {"name": "prift", "reference": "base"}, REFERENCE),
        (through_logits, {"always_learn": [4, 5]}, "`objective` names the token 5, and there are 5 logits (allowed: "),
        (through_hidden, {"weights": {"tokens": {9: 2}}}, "`objective` names the token 9, and there are 5 logits "),
    ],
)
def test_a_function_refuses_what_it_cannot_heed(function, objective, says):
    facts = Facts(columns={"ref_logp": torch.zeros(3)})
    with pytest.raises(SettingsError) as raised:
        function(objective, facts)
    (problem,) = raised.value.problems
    assert problem.startswith(says)


@pytest.mark.parametrize(
    ("function", "objective"),
    [
        (through_hidden, {"kernel": "chunked", "scratch_mb": 3}),
        (through_hidden, {"kernel": "auto"}),
        (through_logits, {"kernel": "auto", "always_learn": [4]}),
        (through_logits, {"name": "prift", "reference": "columns"}),
    ],
)
def test_what_it_heeds_it_takes(function, objective):
    assert function(objective, Facts(columns={"ref_logp": torch.zeros(3)})).isfinite()
