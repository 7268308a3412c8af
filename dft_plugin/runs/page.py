"""One HTML file that shows runs side by side; it loads nothing from a network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from dft_plugin.errors import SettingsError
from dft_plugin.runs import probabilities
from dft_plugin.runs.logs import Run
from dft_plugin.runs.samples import Samples
from dft_plugin.runs.samples import render as rows_of_tokens
from dft_plugin.runs.table import NLL_ALONE, TITLES, Line, compare, evaluations, of_set

COLOURS = ("#3b76c4", "#d9822b", "#2e9e6b", "#b64f8c", "#7a68c8", "#8a8a3a")
"""Readable on a light and on a dark ground, and told apart by most who see few colours."""

SHOWN = ("nll", "mean_prob", "top1", "effective_share", "eos_prob", "loss")

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5d6771; --ground: #ffffff; --line: #dde2e7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #9aa5b0; --ground: #14181c; --line: #2f373f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.25rem 0 .25rem; }
p, td, th { color: var(--ink); } .soft { color: var(--soft); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 12rem; }
td.best { font-weight: 700; } .swatch { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px;
  margin-right: .4rem; } .plot { width: 100%; height: 320px; }
@media (max-width: 40rem) {
  th, td { white-space: normal; overflow-wrap: anywhere; padding: .35rem .3rem; font-size: .85rem; }
  th:first-child, td:first-child { min-width: 7rem; } }
"""

_THEME = """
const dark = window.matchMedia('(prefers-color-scheme: dark)');
function paint() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue('--ink').trim(), line = style.getPropertyValue('--line').trim();
  document.querySelectorAll('.js-plotly-plot').forEach(one => Plotly.relayout(one, {'font.color': ink,
    'xaxis.gridcolor': line, 'yaxis.gridcolor': line, 'xaxis.linecolor': line, 'yaxis.linecolor': line}));
}
dark.addEventListener('change', paint); window.addEventListener('load', paint);
"""


def plotly_script() -> str:
    """Return what draws the curves.

    Raises:
        SettingsError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise SettingsError(["the page is drawn by plotly, which is not installed: pip install plotly."]) from error
    return str(get_plotlyjs())


def render(runs: Sequence[Run], samples: Samples | None = None) -> str:
    """Return the page.

    Args:
        runs: that are shown side by side.
        samples: rows of the data, token by token; None: there are none.

    Raises:
        SettingsError: plotly is not installed.
    """
    script = plotly_script()
    title = " beside ".join(html.escape(run.name) for run in runs)
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{html.escape(NLL_ALONE)}</p>' if len(runs) > 1 else "",
        _trained(runs),
        "<h2>Where they ended</h2>",
        _table(runs, compare(runs)),
        *_plots(runs),
        *_histograms(runs),
        "" if samples is None else rows_of_tokens(samples),
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{_STYLE}</style>'
        f"<script>{script}</script></head>\n<body>\n{body}\n<script>{_THEME}</script></body></html>\n"
    )


def _swatch(number: int) -> str:
    return f'<span class="swatch" style="background:{_colour(number)}"></span>'


def _colour(number: int) -> str:
    """Return the colour of a run: no two runs have the same one."""
    return COLOURS[number] if number < len(COLOURS) else f"hsl({number * 137.5 % 360:g}, 55%, 50%)"


def _trained(runs: Sequence[Run]) -> str:
    rows = "".join(
        f"<tr><td>{_swatch(number)}{html.escape(run.name)}</td>"
        f"<td>{html.escape(run.loss or 'not recorded')}</td><td>{html.escape(run.source.as_posix())}</td></tr>"
        for number, run in enumerate(runs)
    )
    return f'<div class="scroll"><table><tr><th>run</th><th>loss</th><th>read from</th></tr>{rows}</table></div>'


def _table(runs: Sequence[Run], lines: Sequence[Line]) -> str:
    head = "".join(f"<th>{_swatch(number)}{html.escape(run.name)}</th>" for number, run in enumerate(runs))
    rows = []
    for line in lines:
        cells = "".join(
            f"<td{' class=best' if number in line.best else ''}>{'' if value is None else f'{value:.4g}'}</td>"
            for number, value in enumerate(line.values)
        )
        rows.append(f"<tr><td>{html.escape(line.title)}</td>{cells}</tr>")
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _plots(runs: Sequence[Run]) -> list[str]:
    found = []
    for name in SHOWN:
        curves = [curve for number, run in enumerate(runs) for curve in _curves(number, run, name)]
        if curves:
            found += [f"<h2>{html.escape(TITLES[name])}</h2>", _figure(curves)]
    return found


_DASHES = (None, "dash", "dashdot", "longdash")
"""Of evaluation sets; training is dotted."""


def _curves(number: int, run: Run, name: str) -> list[Any]:
    from plotly import graph_objects

    colour, curves = _colour(number), []
    phases: list[tuple[str, str | None, str]] = [("", "dot", "lines")]
    phases += [(one, _DASHES[at % len(_DASHES)], "lines+markers") for at, one in enumerate(evaluations([run]))]
    for prefix, dash, mode in phases:
        points = _points(run, prefix, name)
        if points:
            steps, values = zip(*points, strict=True)
            curves.append(
                graph_objects.Scatter(
                    x=steps,
                    y=values,
                    name=html.escape(f"{run.name}, {of_set(prefix)}", quote=False),
                    mode=mode if len(points) > 1 else "markers",
                    line={"color": colour, "dash": dash, "width": 2},
                    marker={"color": colour},
                )
            )
    return curves


def _points(run: Run, prefix: str, name: str) -> list[tuple[int, float]]:
    if name == "effective_share":
        tokens = dict(run.series(f"{prefix}dft/tokens"))
        effective = run.series(f"{prefix}dft/effective_tokens")
        return [(step, value / tokens[step]) for step, value in effective if tokens.get(step)]
    return run.series(f"{prefix}{name}" if name == "loss" else f"{prefix}dft/{name}")


def _histograms(runs: Sequence[Run]) -> list[str]:
    """Return a figure of the probabilities, first and last, for each kind of targets (arXiv 2508.05629, figure 2)."""
    found = []
    for of in probabilities.kinds([run.histograms for run in runs]):
        curves = [curve for number, run in enumerate(runs) for curve in _before_and_after(number, run, of)]
        found += [
            f"<h2>probabilities of the targets, first count and last ({html.escape(of)})</h2>",
            '<p class="soft">Share of the targets in each twentieth of probability. The axis is logarithmic.</p>',
            _figure(curves, "probability", "log"),
        ]
    return found


def _before_and_after(number: int, run: Run, of: str) -> list[Any]:
    from plotly import graph_objects

    change, curves = probabilities.change_of(run.histograms, of), []
    if change is None:
        return []
    colour, ends = _colour(number), probabilities.TWENTIETHS
    centres = [(low + high) / 2 for low, high in pairwise(ends)]
    for one, dash in ((change.before, "dot"), (change.after, None)):
        # A share of 0 has no place on a logarithmic axis.
        shares = [share or None for share in one.shares(ends)]
        curves.append(
            graph_objects.Scatter(
                x=centres,
                y=shares,
                name=html.escape(f"{run.name}, step {one.step}", quote=False),
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2},
                marker={"color": colour},
                hovertemplate="%{y:.2%}",
            )
        )
    return curves


def _figure(curves: Sequence[Any], across: str = "step", scale: str = "linear") -> str:
    from plotly import graph_objects

    figure = graph_objects.Figure(list(curves))
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 56, "r": 12, "t": 8, "b": 40},
        height=320,
        hovermode="x unified",
        legend={"orientation": "h", "y": -0.26, "yanchor": "top"},
        xaxis={"title": {"text": across, "standoff": 6}},
        yaxis={"type": scale, **({"dtick": 1, "tickformat": "~%"} if scale == "log" else {})},
        showlegend=True,
    )
    config = {"displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config))
