"""Runs side by side: what can be compared between losses, and what the page holds."""

from pathlib import Path

import pytest

from dft_plugin.runs.logs import Run
from dft_plugin.runs.page import render
from dft_plugin.runs.table import compare, without_statistics


def run(name, **series):
    steps = range(1, 1 + max(map(len, series.values())))
    rows = tuple(
        {"step": step, **{key: values[step - 1] for key, values in series.items() if step <= len(values)}}
        for step in steps
    )
    return Run(name, Path(f"{name}/trainer_state.json"), rows, "dft(alpha=1.0)")


SFT = run("sft", **{"loss": [2.0, 1.0], "dft/nll": [2.0, 1.0], "dft/mean_prob": [0.3, 0.5], "eval_dft/nll": [1.5]})
DFT = run("<dft>", **{"loss": [0.2, 0.1], "dft/nll": [2.0, 1.2], "dft/mean_prob": [0.3, 0.6]})


def test_each_quantity_has_its_best_and_the_trained_loss_none():
    lines = {line.key: line for line in compare([SFT, DFT])}
    assert lines["dft/nll"].values == (1.0, 1.2)
    assert lines["dft/nll"].best == {0}
    assert lines["dft/mean_prob"].best == {1}
    assert lines["eval_dft/nll"].values == (1.5, None)
    assert lines["eval_dft/nll"].best == frozenset()
    assert "loss" not in lines


def test_a_run_without_our_statistics_is_named():
    assert without_statistics([SFT, run("stock", loss=[1.0])]) == ["stock"]


def test_the_page_needs_no_network_and_takes_names_as_text():
    pytest.importorskip("plotly")
    text = render([SFT, DFT])
    assert "&lt;dft&gt;" in text
    # What plotly's own code could fetch, it does for maps alone.
    page = text.split("<body>")[1]
    assert "http" not in page
    assert "src=" not in page
    assert '<link rel="stylesheet' not in text.split("<script>")[0]
    for title in ("cross-entropy (nll), nats per token", "mean probability of the targets"):
        assert f"<h2>{title}</h2>" in text
    assert "<h2>token accuracy (top 1)</h2>" not in text
