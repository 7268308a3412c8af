"""What an objective must keep. Shapes: T scored tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from dft_plugin.config.settings import Settings
from dft_plugin.core.statistics import DIRECTIONS
from dft_plugin.errors import ClockError
from dft_plugin.objectives import BlockFunction, Clock, Divisor, Objective, ReferenceNeed, RowFunction, Scope, Weighed
from dft_plugin.testing.tokens import (
    DECLARED_BY,
    VOCAB,
    Tokens,
    UndeclaredError,
    logits,
    reference_logits,
    tokens_for,
    undeclared,
)

_CLOCK = Clock(step=3, last_step=10, epoch=0.3)
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}


def check_objective(objective: Objective | type[Objective]) -> None:
    """Check that an objective is described, reads what it declares, and gives weights as its scope promises.

    The tokens are from near impossible to certain, one is masked out by the model, in sequences of 1 to 17. Weights
    must be finite, detached, of the dtype of `rows.logp_T`, and not below 0 unless `may_be_negative`; 0 is allowed.

    Args:
        objective: one with options set, or a class, which is taken with its defaults.

    Raises:
        AssertionError: says what does not hold.
    """
    made = _with_defaults(objective) if isinstance(objective, type) else objective
    _check_description(made)
    for function in made.needs:
        if not isinstance(function, str):
            _check_function(function)
    if made.reference == "distribution":
        _check_soft_targets(made)
    for dtype in (torch.float32, torch.float64):
        _check_weights(made, dtype)


def _require(holds: bool, otherwise: str) -> None:
    """Raise, also where Python runs with -O: `dft check` relies on it."""
    if not holds:
        raise AssertionError(otherwise)


def _with_defaults(kind: type[Objective]) -> Objective:
    missing = [option for option, field in kind.model_fields.items() if field.is_required()]
    _require(not missing, f"the option {', '.join(missing)} has no default; check an object of {kind.__name__}")
    return kind()


def _check_description(objective: Objective) -> None:
    kind = type(objective).__name__
    for attribute in ("name", "summary", "source"):
        _require(bool(getattr(objective, attribute, None)), f"{kind} has no {attribute}")
    _require(not hasattr(Settings, objective.name), f"the name {objective.name!r} is a setting")
    for option, info in type(objective).model_fields.items():
        _require(bool(info.description), f"option {option} has no description")
        _require(option not in Settings.model_fields, f"option {option} is a setting of ours")
    _require(objective.scope in get_args(Scope), f"scope is {objective.scope!r}; allowed: {_words(Scope)}")
    _require(objective.divisor in get_args(Divisor), f"divisor is {objective.divisor!r}; allowed: {_words(Divisor)}")
    known = get_args(ReferenceNeed)
    _require(objective.reference in known, f"reference is {objective.reference!r}; allowed: {', '.join(known)}")
    _require(
        objective.reference == "distribution" or not objective.replaces_target,
        "`replaces_target` is True, and `reference` is not `distribution`: there are no soft targets",
    )
    for option, (other, _) in objective.without_effect.items():
        unknown = {option, other} - set(type(objective).model_fields)
        _require(not unknown, f"`without_effect` names {_listed(unknown)}, which is no option")
    for what, names in {"statistic": objective.statistics, "option": tuple(type(objective).model_fields)}.items():
        for name in names:
            _require(
                f"dft/{name}" not in DIRECTIONS, f"the {what} {name} would be logged as `dft/{name}`, as one of ours"
            )
    needs, again = objective.needs, objective.needs
    _require(needs == again, "`needs` gives functions that do not equal each other: make them frozen dataclasses")
    for need in needs:
        _require(
            need in ("entropy", "sum_p_squared") or isinstance(need, RowFunction),
            f'needs names {need!r}; allowed: "entropy", "sum_p_squared", or a RowFunction',
        )
    _require(
        objective.divisor != "weights" or not objective.may_be_negative,
        "weights below 0 cannot be divided by their sum, which may be 0; use divisor `tokens`",
    )


def _words(literal: object) -> str:
    return ", ".join(get_args(literal))


def _check_function(function: RowFunction) -> None:
    """Check that a row's statistic is its own, and that of blocks that of the whole."""
    logits_TV, ids_T = logits()
    before_TV = logits_TV.clone()
    name = f"the statistic {function.name}"
    try:
        whole = function(logits_TV, ids_T)
    except Exception as error:
        raise AssertionError(f"{name} failed with {type(error).__name__}: {error}") from error
    _require(torch.equal(logits_TV, before_TV), f"{name} changes the logits that it is given")
    _require(
        whole.shape[:1] == ids_T.shape,
        f"{name} has shape {tuple(whole.shape)}; its first dimension is that of the {len(ids_T)} rows",
    )
    _require(_same(function(logits_TV[:7], ids_T[:7]), whole[:7], torch.float64), f"{name} depends on other rows")
    if isinstance(function, BlockFunction):
        parts = [function(block_TB, ids_T) for block_TB in logits_TV[:, : VOCAB - 1].chunk(2, 1)]
        expected = function(logits_TV[:, : VOCAB - 1], ids_T)
        made = function.combine(torch.stack(parts))
        _require(made.shape == expected.shape, f"`combine` of {name} gives shape {tuple(made.shape)}")
        _require(_same(made, expected, torch.float64), f"`combine` of {name} does not give what whole rows give")


def _check_soft_targets(objective: Objective) -> None:
    _require(objective.scope == "token", "with a reference's distribution, `scope` is `token`")
    reference_TV, (_, ids_T) = reference_logits(), logits()
    made_TV = objective.soft_targets(reference_TV.clone(), ids_T)
    _require(made_TV.shape == reference_TV.shape, f"`soft_targets` gives shape {tuple(made_TV.shape)}, not [C, V]")
    some_CV = objective.soft_targets(reference_TV[:7].clone(), ids_T[:7])
    _require(_same(some_CV, made_TV[:7], torch.float64), "`soft_targets` of a token depend on other tokens")
    _require(not bool(made_TV.isnan().any()), "`soft_targets` gives what is no number")


def _check_weights(objective: Objective, dtype: torch.dtype) -> None:
    tokens = tokens_for(objective, dtype, _clock_for(objective, dtype))
    before = [tensor.clone() for tensor in tokens.tensors()]
    made = _weigh(objective, tokens)
    for tensor, old in zip(tokens.tensors(), before, strict=True):
        _require(_same(tensor, old, dtype), "it changes the rows or targets that it is given")
    _check_numbers(objective, tokens, made)
    _require(_agree(_weigh(objective, tokens), made, dtype), "it gives the same tokens other weights when asked again")
    _check_declared(objective, tokens, made, dtype)
    for index_C, what in _companies(objective, tokens):
        picked = _weigh(objective, tokens.pick(index_C))
        _require(_agree(picked, _picked(made, index_C), dtype), what)
    _check_numbers(objective, none := tokens.pick(torch.arange(0)), _weigh(objective, none))


def _clock_for(objective: Objective, dtype: torch.dtype) -> Clock | None:
    """Return None, with which an objective must work unless it says by `ClockError` that it needs a clock."""
    tokens = tokens_for(objective, dtype, None)
    try:
        objective.weigh(tokens.rows, tokens.targets, None)
    except ClockError:
        return _CLOCK
    except Exception:
        # Whatever this is, it is said when the weights are asked for.
        return None
    return None


def _weigh(objective: Objective, tokens: Tokens) -> Weighed:
    try:
        made = objective.weigh(tokens.rows, tokens.targets, tokens.targets.clock)
    except NotImplementedError as error:
        raise AssertionError(f"{type(objective).__name__} defines neither `weight` nor `weigh`") from error
    except UndeclaredError as error:
        raise AssertionError(error.args[0]) from error
    except Exception as error:
        count = len(tokens.targets)
        raise AssertionError(f"weighing {count} tokens failed with {type(error).__name__}: {error}") from error
    made = made if isinstance(made, Weighed) else Weighed(made)
    _require(isinstance(made.weight_T, Tensor), f"it returned a {type(made.weight_T).__name__}; w_T is a tensor")
    return made


def _check_numbers(objective: Objective, tokens: Tokens, made: Weighed) -> None:
    logp_T = tokens.rows.logp_T
    _require(
        made.soft_T is None or objective.reference == "distribution",
        "it returned soft_T, and `reference` is not `distribution`",
    )
    for what, given_T in {"weights": made.weight_T, "soft_T": made.soft_T}.items():
        if given_T is not None:
            _check_tensor(given_T, what, logp_T)
            _require_none(~given_T.isfinite(), tokens, f"{what} must be finite")
            if not objective.may_be_negative:
                _require_none(given_T < 0, tokens, f"{what} below 0 unlearn; allowed only with `may_be_negative`")
    if made.value_T is not None:
        _check_tensor(made.value_T, "values", logp_T)
        # Of a token that is masked out, the likelihood is not finite either.
        _require_none(~made.value_T.isfinite() & logp_T.isfinite(), tokens, "values must be finite")
    declared, returned = set(objective.statistics), set(made.statistics)
    _require(declared <= returned, f"declared in `statistics`, and not returned: {_listed(declared - returned)}")
    _require(returned <= declared, f"returned, and not declared in `statistics`: {_listed(returned - declared)}")
    for name, value_T in made.statistics.items():
        _require(value_T.shape == logp_T.shape, f"the statistic {name} has shape {tuple(value_T.shape)}, not [T]")


def _check_tensor(given_T: Tensor, what: str, logp_T: Tensor) -> None:
    """Check a tensor that has one number for each token."""
    count = len(logp_T)
    _require(
        given_T.shape == logp_T.shape, f"{what} have shape {tuple(given_T.shape)}; one for each token is [{count}]"
    )
    _require(not given_T.requires_grad, f"{what} must be detached: no gradient flows through them")
    _require(
        given_T.dtype == logp_T.dtype, f"{what} have dtype {given_T.dtype}; that of rows.logp_T is {logp_T.dtype}"
    )


def _check_declared(objective: Objective, tokens: Tokens, made: Weighed, dtype: torch.dtype) -> None:
    """Take away, one after the other, what the objective does not declare: nothing may change."""
    for fact in undeclared(objective):
        complaint = f"it reads {fact}, which is None unless {DECLARED_BY[fact]}"
        try:
            less = _weigh(objective, tokens.without(fact))
        except AssertionError as error:
            raise AssertionError(complaint) from error
        _require(_agree(less, made, dtype), complaint)


def _companies(objective: Objective, tokens: Tokens) -> Iterator[tuple[Tensor, str]]:
    """Yield sets of tokens in which each must get the weight that it got among all, and what is wrong if not."""
    count = len(tokens.targets)
    if objective.scope == "token":
        wrong = "a weight depends on other tokens, and `scope` is `token`"
        for index_C in (torch.arange(7), torch.arange(40, 41), torch.arange(count).flip(0)):
            yield index_C, wrong
    if objective.scope == "sequence":
        sequence_T = tokens.targets.sequence_T
        assert sequence_T is not None
        for odd in (0, 1):
            index_C = (sequence_T % 2 == odd).nonzero()[:, 0]
            yield index_C, "a weight depends on other sequences, and `scope` is `sequence`"


def _picked(made: Weighed, index_C: Tensor) -> Weighed:
    def of(tensor_T: Tensor | None) -> Tensor | None:
        return None if tensor_T is None else tensor_T[index_C]

    statistics = {name: value_T[index_C] for name, value_T in made.statistics.items()}
    return Weighed(made.weight_T[index_C], of(made.value_T), statistics, of(made.soft_T))


def _agree(one: Weighed, other: Weighed, dtype: torch.dtype) -> bool:
    pairs = [(one.weight_T, other.weight_T), (one.value_T, other.value_T), (one.soft_T, other.soft_T)]
    pairs += [(value_T, other.statistics[name]) for name, value_T in one.statistics.items()]
    return all(a_T is b_T if a_T is None or b_T is None else _same(a_T, b_T, dtype) for a_T, b_T in pairs)


def _same(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    if one.shape != other.shape:
        return False
    return torch.allclose(one.double(), other.double(), rtol=_TOLERANCE[dtype], atol=1e-12, equal_nan=True)


def _require_none(bad_T: Tensor, tokens: Tokens, otherwise: str) -> None:
    """Raise where a token is bad, and name one: what a weight is mostly made of is its log-probability."""
    if bool(bad_T.any()):
        at = int(bad_T.nonzero()[0, 0])
        raise AssertionError(f"{otherwise} (a token of log p {float(tokens.rows.logp_T[at]):g})")


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
