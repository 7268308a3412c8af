"""What an objective is, as `dft losses NAME` and docs/losses.md say it: options, when it helps, what it costs."""

from __future__ import annotations

import inspect
import types
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dft_plugin.config.plugins import Catalogue, Entry
from dft_plugin.config.spelling import did_you_mean
from dft_plugin.errors import UnknownNameError
from dft_plugin.objectives import BlockFunction, Objective, RowStatistic
from dft_plugin.objectives.options import values_left

DIVISORS = {
    "tokens": "the target tokens of the optimizer step",
    "weights": "the sum of the weights over the optimizer step",
    "kept": "the tokens of the optimizer step whose weight is above 0",
}

COLUMNS = {
    "ref_logp": "of a frozen reference: one forward pass of it more, or computed beforehand (`dft reference`)",
    "ref_mass": "of a frozen reference: one forward pass of it more, or computed beforehand (`dft reference`)",
    "old_logp": "log-probabilities before the updates, computed beforehand (`dft reference`)",
}
"""What we know of columns by name."""

MUST_HOLD = "a number for each token, which the data must hold"
"""What is said of any other."""


@dataclass(frozen=True)
class Option:
    """One option of an objective.

    Attributes:
        name: as written in YAML.
        allowed: type and range, in words.
        default: its value where it is not written; None where it must be.
        required: whether it must be.
        description: what it does.
    """

    name: str
    allowed: str
    default: Any
    required: bool
    description: str

    @property
    def shown(self) -> str:
        """The default for a person: a long number in four digits."""
        if self.required:
            return "must be given"
        long = isinstance(self.default, float) and len(str(self.default)) > 8
        return f"{self.default:.4g}" if long else str(self.default)


@dataclass(frozen=True)
class Explanation:
    """All that is said of one objective.

    Attributes:
        name: what stands after `loss:`.
        owner: the plugin that brings it.
        summary: one line with the formula of w.
        about: paragraphs.
        source: where the formula was seen.
        helps: when it helps; empty where nothing is known.
        options: in the order of their declaration.
        scope: what a weight looks at, with default options.
        cost: what it costs beyond plain SFT with the same kernel, a sentence each; empty: nothing.
        divisor: what the sum of a step is divided by, in words.
        logs: keys of its own in the log.
        examples: lines of YAML.
    """

    name: str
    owner: str
    summary: str
    about: tuple[str, ...]
    source: str
    helps: str
    options: tuple[Option, ...]
    scope: str
    cost: tuple[str, ...]
    divisor: str
    logs: tuple[str, ...]
    examples: tuple[str, ...]


def find(catalogue: Catalogue, name: str) -> Explanation:
    """Explain one objective by name.

    Raises:
        UnknownNameError: there is none of that name; says the closest.
    """
    entry = catalogue.objectives.get(name)
    if entry is None:
        hint = did_you_mean(name, catalogue.objectives, cutoff=0.5)
        raise UnknownNameError([f"no loss is called `{name}`.{hint} Known: {', '.join(catalogue.objectives)}."])
    return explain(entry)


def explain(entry: Entry[type[Objective]]) -> Explanation:
    """Say all that is known of an objective, from what it declares."""
    kind = entry.item
    options = tuple(_option(name, field) for name, field in kind.model_fields.items())
    usual = _made(kind, options)
    about = inspect.cleandoc(kind.__dict__.get("__doc__") or "").split("\n\n")
    return Explanation(
        name=kind.name,
        owner=entry.owner,
        summary=kind.summary,
        about=tuple(" ".join(part.split()) for part in about if part),
        source=kind.source,
        helps=kind.helps,
        options=options,
        scope=usual.scope,
        cost=tuple(_every_cost(kind, usual)),
        divisor=DIVISORS[usual.divisor],
        logs=tuple(f"dft/{name}" for name in usual.statistics),
        examples=tuple(_examples(kind, options)),
    )


def _option(name: str, field: FieldInfo) -> Option:
    ranges = [words for limit in field.metadata for words in _range(limit)]
    return Option(
        name,
        " ".join([_type(field.annotation), *[" and ".join(ranges)] * bool(ranges)]),
        None if field.is_required() else field.get_default(call_default_factory=True),
        field.is_required(),
        field.description or "",
    )


def _range(limit: Any) -> Iterator[str]:
    """Say a bound that pydantic keeps in a field's metadata."""
    words = {
        annotated_types.Ge: ("ge", ">="),
        annotated_types.Gt: ("gt", ">"),
        annotated_types.Le: ("le", "<="),
        annotated_types.Lt: ("lt", "<"),
    }
    for kind, (attribute, sign) in words.items():
        if isinstance(limit, kind):
            yield f"{sign} {getattr(limit, attribute):g}"


def _type(annotation: Any) -> str:
    known = {float: "number", int: "integer", bool: "true or false", str: "text", type(None): "nothing"}
    if annotation in known:
        return known[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin in (list, tuple, set, frozenset):
        return f"list of {_type(parts[0])}s"
    return getattr(annotation, "__name__", str(annotation))


def _made(kind: type[Objective], options: Collection[Option], **changed: Any) -> Objective:
    """Make one with its defaults; where an option has none, without it, since no cost depends on a number."""
    try:
        return kind(**changed)
    except ValidationError:
        defaults = {option.name: option.default for option in options}
        return kind.model_construct(**{**defaults, **changed})


def _every_cost(kind: type[Objective], usual: Objective) -> Iterator[str]:
    """Yield what it costs whatever the options, then what it costs only with a certain choice among words."""
    always, sometimes = _costs(usual), []
    for name, field in kind.model_fields.items():
        if get_origin(field.annotation) is not Literal:
            continue
        by_word = {word: _costs(_made(kind, (), **{name: word})) for word in get_args(field.annotation)}
        for word, costs in by_word.items():
            only = [cost for cost in costs if any(cost not in others for others in by_word.values())]
            sometimes += [f"with `{name}: {word}` {cost}" for cost in only]
            always = [cost for cost in always if cost not in only]
    yield from always
    yield from sometimes


def _costs(objective: Objective) -> list[str]:
    found = [_cost_of(need) for need in sorted(objective.needs, key=_name)]
    if objective.scope == "sequence":
        found.append("weights look at whole sequences: a second sweep over the head where that is trained")
    if objective.scope == "batch":
        found.append("weights look at the whole step: a second sweep over a trained head, and no split of the step")
    found += [f"the column `{name}`, {COLUMNS.get(name, MUST_HOLD)}" for name in sorted(objective.columns)]
    if objective.reference == "distribution":
        found.append("a frozen reference: one forward pass of it more, and its logits beside the model's, in chunks")
    if objective.divisor != "tokens":
        found.append("gradients are scaled once more at the end of each step, when its divisor is known")
    return found


def _name(need: RowStatistic) -> str:
    return need if isinstance(need, str) else need.name


def _cost_of(need: RowStatistic) -> str:
    """Say what a row statistic costs."""
    words = {"entropy": "the entropy of each row", "sum_p_squared": "the sum of p squared of each row"}
    if isinstance(need, str):
        return f"{words[need]}, summed up beside the softmax"
    whole = "made from whole rows: `chunked` runs where `blocked` would"
    how = "made block by block" if isinstance(need, BlockFunction) else whole
    return f"the statistic `{need.name}` of each row, {how}"


def _examples(kind: type[Objective], options: Collection[Option]) -> Iterator[str]:
    """Yield the line, and the line with every option that can be written shortly."""
    name = kind.name
    if not any(option.required for option in options):
        yield f"loss: {name}"
    given = {option.name: _sample(option) for option in options}
    for option, (other, without) in kind.without_effect.items():
        # Beside a number an option may stand at its default.
        left = values_left(kind, option)
        if given[other] in without and left:
            given[other] = left[0]
    short = {key: value for key, value in given.items() if len(str(value)) <= 8}
    if short:
        yield yaml.safe_dump({"loss": {"name": name, **short}}, sort_keys=False, default_flow_style=True)[1:-2]


def _sample(option: Option) -> Any:
    if not option.required:
        default = option.default
        return list(default) if isinstance(default, (tuple, set, frozenset)) else default
    kinds = {"number": 1.0, "integer": 1, "text": "word", "true or false": True}
    first = option.allowed.split(" ")[0]
    return [1, 2] if option.allowed.startswith("list") else kinds.get(option.allowed, kinds.get(first, first))
