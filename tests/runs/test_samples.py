"""Rows of tokens on a page: shaded by weight, text as text, and nothing that needs a network."""

from pathlib import Path

import pytest

from dft_plugin.runs.logs import Run
from dft_plugin.runs.page import render as page
from dft_plugin.runs.samples import Sample, Samples, Scored, Token, render


def samples(*tokens, left_out=0):
    return Samples("out/<dft>", "rows.jsonl", "dft(alpha=1.0)", (Sample(tokens, left_out),))


def test_a_target_has_its_shade_and_its_numbers_and_other_text_has_neither():
    text = render(samples(Token("2 + 2 = ", None), Token("4", Scored(0.25, 0.5, 1.3863, 0.69312)), left_out=1200))
    assert '<div class="tokens">2 + 2 = <span class="t" style="--w:0.500"' in text
    assert 'data-n="p 0.25 · weight 0.5 · -log p 1.386 · loss 0.6931">4</span>' in text
    assert "... and 1,200 tokens more" in text
    assert "dft(alpha=1.0), as out/&lt;dft&gt; weighs rows.jsonl" in text


def test_text_of_the_data_is_no_markup_and_each_token_can_be_pointed_at():
    one = Scored(0.5, 0.5, 0.7, 0.35)
    text = render(
        samples(Token("<script>alert(1)</script>", one), Token("", one), Token("\n", one), Token("<b>", None))
    )
    assert "&lt;script&gt;alert(1)&lt;/script&gt;</span>" in text
    assert ">·</span>" in text
    assert ">↵\n</span>" in text
    assert "&lt;b&gt;" in text


def test_weights_above_one_are_shaded_against_the_largest_and_those_below_zero_apart():
    text = render(samples(Token("a", Scored(0.5, 4.0, 0.7, 2.8)), Token("b", Scored(0.5, -2.0, 0.7, -1.4))))
    assert 'class="t" style="--w:1.000"' in text
    assert 'class="t below" style="--w:0.500"' in text
    assert "</span>4; below 0" in text


def test_the_page_holds_them_and_loads_nothing():
    pytest.importorskip("plotly")
    run = Run("run", Path("run"), ({"step": 1.0, "loss": 1.0},))
    body = page([run], samples(Token("4", Scored(0.25, 0.5, 1.4, 0.7)))).split("<body>")[1]
    assert "how each token is weighed" in body
    assert "http" not in body
    assert "src=" not in body
    assert "how each token" not in page([run]).split("<body>")[1]
