"""The offline part: what is right, what DPO compares, one budget for all, and a rate before a run that needs it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evidence import rates
from evidence.alphabet import END, VOCAB, decode, encode
from evidence.losses import BASE
from evidence.offline import asking, report
from evidence.offline.asking import Asked, Budget
from evidence.offline.characters import tokenizer
from evidence.offline.grid import PART, OfflineGrid, OfflineRun
from evidence.offline.methods import BY_TRL, METHODS, WITHOUT_TRL
from evidence.smoke import SMOKE_OFFLINE, SMOKE_SCALE
from evidence.tasks import Example

SUM = Example("1+2=", "", "3")


def test_right_is_an_answer_that_ends_in_the_result():
    asked = Asked(SUM, ("12#3", "1#4", None, "3", "12#3"))
    assert [one.answer for one in asked.right] == ["12#3", "3", "12#3"]
    assert asked.wrong == ["1#4"]
    assert {(one.prompt, one.truth) for one in asked.right} == {("1+2=", "3")}


def test_no_answer_is_in_two_pairs():
    asked = [Asked(SUM, ("a#3", "b#3", "c#4", None, "d#4", "e#4")), Asked(SUM, ("a#3", None)), Asked(SUM, ("b#4",))]
    found = list(asking.pairs(asked, seed=1))
    assert len(found) == 2
    assert {pair.chosen for pair in found} == {"a#3", "b#3"}
    assert {pair.rejected for pair in found} < {"c#4", "d#4", "e#4"}


def test_the_tokenizer_of_trls_trainers_has_the_ids_of_the_alphabet():
    made, text = tokenizer(), decode(range(2, VOCAB))
    assert made(text)["input_ids"] == encode(text)
    assert made(f"{text}<end>")["input_ids"] == [*encode(text), END]
    assert made.decode(encode("12+3=:;# \n")) == "12+3=:;# \n"
    assert (made.pad_token_id, made.eos_token_id, len(made)) == (0, END, VOCAB)


def test_as_many_answers_are_trained_on_as_are_sampled():
    assert Budget().steps * Budget().rows == Budget().questions * Budget().tries == 2048
    assert Budget().questions % Budget().rounds == Budget().steps % Budget().rounds == 0


def made(run, right=0.5):
    accuracy = {"taught@0": right, "taught@1": right, "longer@0": 0.0}
    spent = {"sampled": 4096, "kept": 9, "trained": 4096, "trained_tokens": 9}
    return {
        "key": run.key,
        "part": PART,
        "cell": run.cell.name,
        "loss": run.method,
        "rate": run.rate,
        "seed": run.seed,
        "accuracy": accuracy,
        "passes": {"pass@1": right, "pass@16": right},
        "right": {"mean_prob": right},
        "spent": spent,
        "seconds": [1.0, 2.0],
    }


def test_a_rate_is_chosen_in_the_first_cell_before_it_is_needed():
    grid, rows = OfflineGrid(), {}
    while pending := grid.pending(rows):
        run = pending[0]
        if run.method != BASE and run.seed != rates.SEED:
            assert run.rate == 3e-4
        if run.seed == rates.SEED:
            assert run.cell == grid.cells[0]
        rows[run.key] = made(run, {3e-4: 0.8}.get(run.rate, 0.5))
    reported = [row for row in rows.values() if row["seed"] != rates.SEED]
    assert len(reported) == grid.planned() == 3 * 2 * 9


def test_the_page_says_what_the_rows_do():
    grid, rows = OfflineGrid(), {}
    assert (report.tables(rows), report.supposed(rows), report.chosen(rows), report.so_far(rows)) == ("", "", "", "")
    for seed in (1, 2, 3):
        for method, right in (("RFT", 0.5), ("DFT", 0.6), ("GRPO", 0.7)):
            run = OfflineRun(grid.cells[0], method, 1e-3, seed)
            rows[run.key] = made(run, right + seed / 1000)
    said = report.supposed(rows)
    assert "*DFT* is not behind *RFT*, sampled at temperature 1: offline, well learned: +10.0 ± 0.0, holds" in said
    assert "*DFT* is not behind *GRPO*, sampled at temperature 1: offline, well learned: -10.0 ± 0.0, broken" in said
    assert "*DPO*" not in said
    assert "| GRPO | 0.001 | 3 | 70.2 ± 0.2 | 70.2 ± 0.2 |" in report.tables(rows)
    assert "Of the 54 runs that are reported, 9 are there." in report.so_far(rows)


@pytest.mark.slow
@pytest.mark.parametrize("method", WITHOUT_TRL)
def test_every_method_of_ours_spends_the_same(tmp_path, method, monkeypatch):
    # Two steps of pre-training give no right answer.
    monkeypatch.setattr(Asked, "_is_right", lambda self, answer: True)
    cell, budget = SMOKE_OFFLINE.cells[0], replace(SMOKE_OFFLINE.budget, questions=8)
    row = OfflineRun(cell, method, 1e-3, 1, budget).execute(SMOKE_SCALE, tmp_path, lambda: None)
    assert row["spent"]["sampled"] == budget.questions * budget.tries == 16
    assert row["spent"]["trained"] == row["spent"]["sampled"]
    assert row["distance"] > 0
    assert row["setting"]["iterated"] == ("iterated" in method)
    assert set(row["passes"]) == {"pass@1", "pass@2"}
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt", ".lock"}


def test_the_methods_are_those_of_the_page():
    assert set(METHODS) == {*WITHOUT_TRL, *BY_TRL}
    assert list(BY_TRL) == ["DPO", "GRPO", "RLOO"]
