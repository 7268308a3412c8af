"""What rows say of the hypothesis: verdicts of rows that were made up."""

from __future__ import annotations

import pytest

from evidence import tables
from evidence.answers import crossing, hypothesis
from evidence.cells import cells
from evidence.foretelling import by_own_answers, by_probability, fares, own_answers, supposed, table, unseen
from evidence.grid import Grid
from evidence.study import Study, accuracy

CELL = cells()[2].name
TOOK = accuracy("taught@0")


def study(prior=0.97, **found):
    names = {"sft": "SFT", "dft": "DFT", "alpha": "alpha 0.5", "base": "base"}
    rows = {}
    for name, values in found.items():
        for seed, value in enumerate(values, start=1):
            key = f"{name} {seed}"
            rows[key] = {
                "key": key,
                "part": "core",
                "cell": CELL,
                "loss": names[name],
                "seed": seed,
                "accuracy": {
                    f"{kind}@{heat}": value for kind in ("taught", "form") for heat in ("0", "0.3", "0.7", "1")
                },
                "before": {"mean_prob": prior},
            }
    return Study(Grid(cells()), rows)


def test_a_cell_breaks_where_the_whole_interval_is_more_than_half_a_point_behind():
    verdict = study(sft=[0.90, 0.92, 0.91], dft=[0.1, 0.2, 0.1], alpha=[0.88, 0.90, 0.891]).verdict(CELL, TOOK)
    assert (verdict.better, verdict.word) == ("SFT", "broken")
    assert verdict.difference.mean == pytest.approx(-0.0196667, abs=1e-6)


def test_a_cell_holds_where_the_whole_interval_is_less_behind():
    verdict = study(sft=[0.5, 0.6, 0.5], dft=[0.90, 0.92, 0.91], alpha=[0.899, 0.92, 0.91]).verdict(CELL, TOOK)
    assert (verdict.better, verdict.word) == ("DFT", "holds")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"sft": [0.9, 0.9], "dft": [0.1, 0.1], "alpha": [0.95, 0.85]}, "does not decide"),
        ({"sft": [0.9], "dft": [0.1], "alpha": [0.1]}, "one seed"),
        ({"sft": [0.0, 0.0], "dft": [0.0, 0.0], "alpha": [0.0, 0.0]}, "none learns"),
    ],
)
def test_what_does_not_decide_is_not_said_to_hold(values, word):
    assert study(**values).verdict(CELL, TOOK).word == word


def test_half_a_point_is_not_more_than_half_a_point():
    """0.9 - 0.895 is 0.005 and a little in floats."""
    text = hypothesis(study(sft=[0.9, 0.9], dft=[0.1, 0.1], alpha=[0.895, 0.895]))
    assert "holds in 1" in text
    assert "behind" not in text


def test_seeds_are_paired():
    """The first seed of one is not compared with the second of the other, and a seed without its pair is left out."""
    found = study(sft=[0.5, 0.9], dft=[0.4, 0.8, 0.0]).difference(CELL, "DFT", "SFT", TOOK)
    assert found.mean == pytest.approx(-0.1)
    assert found.half == pytest.approx(0.0, abs=1e-9)
    assert found.seeds == 2


def test_what_is_behind_is_named():
    text = hypothesis(study(sft=[0.9, 0.9], dft=[0.1, 0.1], alpha=[0.88, 0.88]))
    assert "broken in 1" in text
    assert f"{CELL} (-2.0 ± 0.0)" in text
    assert "*longer problems, greedy*, 0 cells" in text


@pytest.mark.parametrize(("prior", "right"), [(0.97, 1), (0.05, 0)])
def test_the_rule_of_thumb_is_right_where_it_takes_the_better_one(prior, right):
    text = fares(study(prior, sft=[0.5, 0.5], dft=[0.7, 0.7]), by_probability)
    assert f"the better one in {right} cells and the worse one in {1 - right}" in text
    assert by_probability(study(0.3, sft=[0.5]), CELL) == "either"


@pytest.mark.parametrize(("own", "taken", "right"), [(0.005, "SFT", 0), (0.01, "DFT", 1), (0.4, "DFT", 1)])
def test_own_answers_are_those_of_the_base_in_the_form_shown(own, taken, right):
    made = study(0.97, sft=[0.5, 0.5], dft=[0.7, 0.7], base=[own, own])
    for row in made.rows.values():
        if row["loss"] == "base":
            row["accuracy"]["taught@1"] = 0.9
    assert own_answers(made, CELL) == own
    assert by_own_answers(made, CELL) == taken
    assert f"the better one in {right} cells and the worse one in {1 - right}" in fares(made, by_own_answers)
    assert f"| DFT | {100 * own:.1f} | {taken} |" in table(made)


def test_a_rule_is_not_held_against_the_seed_from_which_it_was_made():
    made = study(0.97, sft=[0.5, 0.9], dft=[0.7, 0.7], base=[0.0, 0.4])
    assert own_answers(made, CELL) == 0.2
    assert own_answers(unseen(made), CELL) == 0.4
    text = supposed(made)
    assert (
        "*greedy*, of 1 cells in which both take one and it matters: own answers take the worse one in 1, the" in text
    )
    assert supposed(study(sft=[0.5], dft=[0.4], base=[0.1])) == ""


def test_below_one_per_cent_of_own_answers_the_rule_is_counted_where_sft_learns():
    text = supposed(study(0.97, sft=[0.9, 0.5], dft=[0.0, 0.2], base=[0.0, 0.0]))
    assert "*greedy*: DFT is behind in 1 of 1 cells with fewer than 1 % own answers" in text
    assert "the worse one in 0, the mean probability in 1" in text
    assert "DFT is behind" not in supposed(study(0.97, sft=[0.9, 0.0], dft=[0.0, 0.2], base=[0.0, 0.0]))


def test_the_mean_probability_is_that_of_the_seeds_looked_at():
    made = study(0.2, sft=[0.5, 0.5])
    made.rows["sft 2"]["before"] = {"mean_prob": 0.9}
    assert unseen(made).prior(CELL) == 0.9


def test_the_crossing_line_says_up_to_where_dft_is_behind_and_from_where_it_is_ahead():
    made = study(0.97, sft=[0.5], dft=[0.7])
    lower = study(0.08, sft=[0.9], dft=[0.2])
    other = next(cell.name for cell in cells() if cell.name != CELL and cell.demonstrations.wrong == 0.4)
    rows = {f"other {key}": {**row, "cell": other} for key, row in lower.rows.items()}
    text = crossing(Study(made.grid, {**made.rows, **rows}), "taught@1")
    assert text == "- *40% wrong*: DFT is behind up to 0.08 and ahead from 0.97 (cells: 1 and 1)"


def test_a_loss_without_rows_leaves_its_place_empty():
    table = tables.hypothesis(study(sft=[0.5]), "taught@0").splitlines()
    assert len(table) == 3
    assert {len(line.split(" | ")) for line in table} == {10}
