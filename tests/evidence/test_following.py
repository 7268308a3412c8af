"""What one loses by the advice of `dft probe`, and by always taking one loss: of rows that were made up."""

from __future__ import annotations

import pytest

from evidence.cells import cells
from evidence.following import CALLED, advised, by_cell, lost, table
from evidence.grid import Grid
from evidence.short import in_short
from evidence.study import Study

STRONG, WEAK = cells()[2].name, cells()[6].name
FOUND = {"surprise": 0.0, "conflict_share": 0.0, "unknown_share": 0.0, "own_answers": 0.2, "tokens": 9000, "rows": 300}
TAUGHT = {
    STRONG: {"SFT": 0.5, "DFT": 0.8, "floor 0.1": 0.9, "alpha 0.5": 0.7, "EAFT": 0.4},
    WEAK: {"SFT": 0.6, "DFT": 0.0, "floor 0.1": 0.1, "alpha 0.5": 0.3, "EAFT": 0.5},
}


def study(probs, seeds=(1, 2), left_out=()):
    rows = {}
    for cell, right in TAUGHT.items():
        for seed in seeds:
            found = {**FOUND, "mean_prob": probs[cell]}
            rows[f"probe {cell} {seed}"] = {
                "part": "probe",
                "cell": cell,
                "loss": "base",
                "seed": seed,
                "found": found,
            }
            row = {"part": "core", "cell": cell, "loss": "base", "seed": seed, "before": {"mean_prob": probs[cell]}}
            rows[f"{cell} base {seed}"] = {
                **row,
                "accuracy": {"taught@0": 0.1, "form@1": 0.2 if cell == STRONG else 0.0},
            }
            for loss, share in right.items():
                if (cell, loss) not in left_out:
                    row = {
                        "part": "core",
                        "cell": cell,
                        "loss": loss,
                        "seed": seed,
                        "before": {"mean_prob": probs[cell]},
                    }
                    rows[f"{cell} {loss} {seed}"] = {
                        **row,
                        "accuracy": {"taught@0": share, "taught@0.3": share, "taught@1": share / 2},
                    }
    return Study(Grid(cells()), rows)


PROBS = {STRONG: 0.9, WEAK: 0.05}


def test_the_advice_is_held_against_the_best_of_the_full_grid():
    made = study(PROBS)
    assert advised(made, STRONG) == {1: "dft", 2: "dft"}
    assert lost(made, STRONG, "taught@0") == pytest.approx([0.1, 0.1])
    assert lost(made, WEAK, "taught@0") == [0.0, 0.0]
    assert lost(made, WEAK, "taught@1", "DFT") == pytest.approx([0.3, 0.3])
    lines = table(made).splitlines()
    assert "| as advised | 5.0 | 10.0 | 2.5 | 5.0 | 2 |" in lines
    assert "| always DFT | 35.0 | 60.0 | 17.5 | 30.0 | 2 |" in lines
    assert f"| {STRONG} | 0.90 | 20.0 | 0 | 0 | `dft` | 10.0 | 5.0 |" in by_cell(made)


def test_where_a_loss_is_missing_nothing_is_counted():
    """The best of those that are there may not be the best."""
    made = study(PROBS, left_out={(STRONG, "floor 0.1")})
    assert lost(made, STRONG, "taught@0") == []
    assert "| as advised | 0.0 | 0.0 | 0.0 | 0.0 | 1 |" in table(made)


def test_a_seed_that_chose_the_rates_is_not_counted():
    assert advised(study(PROBS, seeds=(0, 1)), STRONG) == {1: "dft"}


@pytest.mark.parametrize("what", CALLED)
def test_what_is_advised_is_found_among_the_losses(what):
    from dft_plugin.config.files import parse_yaml
    from dft_plugin.config.plugins import build_catalogue
    from evidence.losses import LOSSES

    settings = build_catalogue().settings
    if what.endswith("[eos]}"):
        assert LOSSES[CALLED[what]] == {"name": "dft", "always_learn": [1]}
    else:
        assert settings(parse_yaml(what, "loss")) == settings(LOSSES[CALLED[what]])


def test_in_short_says_what_the_tables_say():
    text = in_short(study(PROBS))
    assert "greedy, it is ahead of SFT in 1 of 2 cells and behind in 1; sampled" in text
    assert "greedy, behind in 2 of 2 cells, by 30 at most, and ahead in 0; sampled" in text
    assert "by no look at all, always SFT wrong in 1 of 2 cells" in text
    assert "SFT sampled at 0.3 equals DFT at 1 in 1 of the 1 cells" in text
    assert "greedy: SFT 20, floor 0.1 25, alpha 0.5 25, EAFT 30, DFT 35;" in text
    assert "On the model's own right answers" not in text
    assert in_short(Study(Grid(cells()), {})) == ""
