"""Sample sequences on a page, each token shaded by its weight, its numbers where it is pointed at. No torch."""

from __future__ import annotations

import html
from dataclasses import dataclass

STYLE = """
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; border: 1px solid var(--line);
  border-radius: 6px; padding: .6rem .8rem; color: var(--soft); margin: .75rem 0; }
.t { color: var(--ink); border-radius: 3px; padding: .12em 0; cursor: default;
  background: rgb(59 118 196 / calc(var(--w) * .62)); border-bottom: 1px solid var(--line); }
.t.below { background: rgb(217 130 43 / calc(var(--w) * .62)); }
.scale { display: inline-block; width: 8rem; height: .8rem; border-radius: 3px; vertical-align: middle;
  margin: 0 .4rem; border: 1px solid var(--line);
  background: linear-gradient(to right, transparent, rgb(59 118 196 / .62)); }
#tip { position: fixed; z-index: 2; max-width: calc(100vw - 16px); padding: .35rem .6rem; border-radius: 6px;
  background: var(--ink); color: var(--ground); font-size: .8125rem; font-variant-numeric: tabular-nums;
  pointer-events: none; }
#tip[hidden] { display: none; }
"""

SCRIPT = """
(() => {
  const tip = document.getElementById('tip');
  const show = event => {
    const token = event.target.closest ? event.target.closest('.t') : null;
    if (!token) { tip.hidden = true; return; }
    tip.textContent = token.dataset.n; tip.hidden = false;
    const at = token.getClientRects()[0], own = tip.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    tip.style.left = Math.max(8, Math.min(at.left, width - own.width - 8)) + 'px';
    tip.style.top = (at.top > own.height + 12 ? at.top - own.height - 6 : at.bottom + 6) + 'px';
  };
  // A finger points by a tap.
  document.addEventListener('pointerover', show); document.addEventListener('click', show);
  document.addEventListener('scroll', () => { tip.hidden = true; }, {passive: true});
})();
"""


@dataclass(frozen=True)
class Scored:
    """What is known of a target.

    Attributes:
        p: its probability.
        weight: what the loss multiplies it by.
        nll: -log p, in nats.
        loss: its part of the loss, not divided.
    """

    p: float
    weight: float
    nll: float
    loss: float


@dataclass(frozen=True)
class Token:
    """One token of a row.

    Attributes:
        text: as it reads there.
        scored: its numbers; None where it is no target.
    """

    text: str
    scored: Scored | None


@dataclass(frozen=True)
class Sample:
    """A row of the data.

    Attributes:
        tokens: its first ones.
        left_out: how many follow.
    """

    tokens: tuple[Token, ...]
    left_out: int = 0


@dataclass(frozen=True)
class Samples:
    """Rows as a model and a loss see them.

    Attributes:
        model: which one.
        data: which data, or the config that names them.
        loss: in words.
        rows: of the data.
    """

    model: str
    data: str
    loss: str
    rows: tuple[Sample, ...]


def render(samples: Samples) -> str:
    """Return the part of a page, with its style and its script."""
    weights = [abs(token.scored.weight) for row in samples.rows for token in row.tokens if token.scored is not None]
    # Weights of most losses end at 1; what goes beyond is shaded against the largest.
    scale = max([1.0, *weights])
    rows = "\n".join(_row(row, scale) for row in samples.rows)
    said = f"{samples.loss}, as {samples.model} weighs {samples.data}"
    return (
        f"<style>{STYLE}</style>\n<h2>how each token is weighed</h2>\n"
        f'<p class="soft">{html.escape(said)}. Weight 0<span class="scale"></span>{scale:.3g}; below 0 in orange; '
        "grey text is no target. Point at a token, or tap it, for its numbers.</p>\n"
        f'{rows}\n<div id="tip" role="status" hidden></div>\n<script>{SCRIPT}</script>'
    )


def _row(row: Sample, scale: float) -> str:
    tokens = "".join(_token(token, scale) for token in row.tokens)
    more = f'<span class="soft"> ... and {row.left_out:,} tokens more</span>' if row.left_out else ""
    return f'<div class="tokens">{tokens}{more}</div>'


def _token(token: Token, scale: float) -> str:
    text = html.escape(_visible(token.text))
    if token.scored is None:
        return text
    one = token.scored
    numbers = f"p {one.p:.4g} · weight {one.weight:.4g} · -log p {one.nll:.4g} · loss {one.loss:.4g}"
    below = " below" if one.weight < 0 else ""
    return f'<span class="t{below}" style="--w:{abs(one.weight) / scale:.3f}" data-n="{numbers}">{text}</span>'


def _visible(text: str) -> str:
    """Return text in which a token that is nothing, or the end of a line, can be pointed at."""
    return text.replace("\n", "↵\n") or "·"
