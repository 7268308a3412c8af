"""What to train with, from what a model says of its data before it is trained. One table of thresholds. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Finding = Mapping[str, float]
"""Numbers of a probe by name: see `hf/probing.py`. One that was not found is left out."""

TWO_REGIMES = "arXiv 2510.00526"
OWN_STUDY = "a first study of ours on small models"
COMMON_SENSE = "calibration: nats of surprise beyond a model's own entropy are 0 for text that it could have written"


@dataclass(frozen=True)
class Threshold:
    """A number that advice turns on.

    Attributes:
        value: of the number.
        source: who says so.
    """

    value: float
    source: str


WEAK_PRIOR = Threshold(0.1, TWO_REGIMES)
"""Mean probability of the targets below which plain likelihood trains better."""

STRONG_PRIOR = Threshold(0.5, TWO_REGIMES)
"""Mean probability of the targets above which DFT does."""

FOREIGN = Threshold(4.0, COMMON_SENSE)
"""Nats of surprise (nll minus entropy) above which data is nothing that the model takes for text."""

CONTRADICTED = Threshold(0.1, "arXiv 2601.02151: confident conflicts")
"""Share of targets that a model finds unlikely (p < 0.01) while it is sure of another (entropy < 1 nat)."""

UNKNOWN = Threshold(0.1, f"arXiv 2508.05629, section 4.5: factual recall; {OWN_STUDY}")
"""Share of targets that a model finds unlikely (p < 0.01) without being sure of another: what it does not know."""

UNLEARNED = Threshold(0.1, OWN_STUDY)
"""Mean probability of a kind of tokens below which DFT will hardly teach it."""

REPEATED = Threshold(0.05, "arXiv 2107.06499: duplicates are memorised")
"""Share of rows that are there more than once."""

FEW = Threshold(400, "a mean of n numbers between 0 and 1 is known to within 1 / sqrt(n), 0.05 here")
"""Targets below which a probe says little."""

ENOUGH = 5
"""Tokens of a kind that say something of it."""


@dataclass(frozen=True)
class Advice:
    """One thing to do.

    Attributes:
        what: to write after `loss:`, or words where it is not about the loss.
        why: with the numbers.
        source: of the threshold.
        is_loss: whether `what` stands after `loss:`.
    """

    what: str
    why: str
    source: str
    is_loss: bool = True


def advise(found: Finding) -> list[Advice]:
    """Return advice, the objective first; at least that.

    Args:
        found: `mean_prob`, `surprise`, `conflict_share` and `unknown_share`; `eos_prob` with `eos_tokens`,
            `added_prob` with `added_tokens`; `repeated_share`; `tokens` and `rows`.
    """
    objective = _objective(found)
    return [_with_exemptions(objective, found), *(say(found) for rule, say in _BESIDES if rule(found))]


def _objective(found: Finding) -> Advice:
    p, surprise = found["mean_prob"], found["surprise"]
    if p < WEAK_PRIOR.value and surprise > FOREIGN.value:
        why = (
            f"the targets' mean probability is {p:.3f}, and the model is {surprise:.1f} nats more surprised than it "
            "expects to be: to this model the data is not text. Look at the chat template, at what is masked and at "
            "the rows first. If they are right, the model has to learn what it does not know: plain SFT"
        )
        return Advice("nll", why, f"{WEAK_PRIOR.source}; {FOREIGN.source}")
    if p < WEAK_PRIOR.value:
        why = (
            f"the targets' mean probability is {p:.3f}, below {WEAK_PRIOR.value:g}: the model does not know them yet, "
            "and DFT gives up on what it finds unlikely. Plain SFT does not"
        )
        return Advice("nll", why, WEAK_PRIOR.source)
    if found["conflict_share"] > CONTRADICTED.value:
        why = (
            f"{found['conflict_share']:.0%} of the targets contradict what the model is sure of (p below 0.01, "
            f"entropy below 1 nat), beside a mean probability of {p:.2f}. EAFT gives them little weight and teaches "
            "the rest; DFT hardly teaches them, and not what else is new. If they are what is to be learned, "
            "`loss: nll`; if many are errors, and you sample, `{name: dft, alpha: 0.5}`"
        )
        return Advice("eaft", why, f"{CONTRADICTED.source}; {OWN_STUDY}")
    if found["unknown_share"] > UNKNOWN.value:
        why = (
            f"the model does not know {found['unknown_share']:.0%} of the targets (p below 0.01, and not sure of "
            f"another token either), whatever it makes of the rest (mean probability {p:.2f}): facts, names, numbers. "
            "DFT gives up on them; plain SFT does not, nor does `loss: focal`"
        )
        return Advice("nll", why, UNKNOWN.source)
    if p < STRONG_PRIOR.value:
        why = (
            f"the targets' mean probability is {p:.2f}, between {WEAK_PRIOR.value:g} and {STRONG_PRIOR.value:g}, "
            "where neither SFT nor DFT wins everywhere; alpha 0.5 lies between them. Compare it with `loss: nll`"
        )
        return Advice("{name: dft, alpha: 0.5}", why, f"{STRONG_PRIOR.source}; {OWN_STUDY}")
    why = (
        f"the targets' mean probability is {p:.2f}, above {STRONG_PRIOR.value:g}: the model knows how to do this, and "
        "DFT strengthens what it knows rather than the exceptions"
    )
    return Advice("dft", why, STRONG_PRIOR.source)


def _with_exemptions(advice: Advice, found: Finding) -> Advice:
    """Add what DFT would not teach to its advice; SFT and EAFT teach it."""
    kinds = [kind for kind in ("eos", "added") if advice.what not in ("nll", "eaft") and _unlearned(found, kind)]
    if not kinds:
        return advice
    inner = advice.what.strip("{}") if advice.what.startswith("{") else f"name: {advice.what}"
    said = " and ".join(
        f"{_WORDS[kind]} (mean probability {found[f'{kind}_prob']:.3f}, {found[f'{kind}_tokens']:.0f} tokens)"
        for kind in kinds
    )
    return Advice(
        f"{{{inner}, always_learn: [{', '.join(kinds)}]}}",
        f"{advice.why}. It would hardly teach {said}: `always_learn` has them learned as in SFT",
        f"{advice.source}; {UNLEARNED.source}",
    )


_WORDS = {"eos": "the end of an answer", "added": "the added tokens"}


def _unlearned(found: Finding, kind: str) -> bool:
    return found.get(f"{kind}_tokens", 0) >= ENOUGH and found[f"{kind}_prob"] < UNLEARNED.value


def _repeated(found: Finding) -> Advice:
    share = found["repeated_share"]
    return Advice(
        "remove repeated rows",
        f"{share:.0%} of the rows that were looked at are there more than once; DFT, which strengthens what is likely "
        "already, strengthens these most",
        REPEATED.source,
        is_loss=False,
    )


def _few(found: Finding) -> Advice:
    tokens, rows = found["tokens"], found["rows"]
    why = f"{tokens:,.0f} targets of {rows:,.0f} rows are few: what stands above may be chance"
    return Advice("look at more of the data", why, FEW.source, is_loss=False)


_BESIDES: Sequence[tuple[Callable[[Finding], bool], Callable[[Finding], Advice]]] = (
    (lambda found: found.get("tokens", FEW.value) < FEW.value, _few),
    (lambda found: found.get("repeated_share", 0.0) > REPEATED.value, _repeated),
)


def as_json(every: Sequence[Advice]) -> list[dict[str, Any]]:
    """Return plain data."""
    return [{"what": one.what, "why": one.why, "source": one.source, "is_loss": one.is_loss} for one in every]
