"""What `dft reference` would compute for a loss, and what it says where that is nothing."""

from __future__ import annotations

import pytest

from dft_plugin.config.beforehand import carried, computed, trained_with
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import ConflictError

CATALOGUE = build_catalogue()
BOTH = ("ref_logp", "ref_mass")


def settings(**loss):
    return CATALOGUE.settings(loss)


@pytest.mark.parametrize(
    ("loss", "columns"),
    [
        ({"name": "prift"}, BOTH),
        ({"name": "prift", "by": "mass", "reference": "columns"}, BOTH),
        ({"name": "iw_sft", "reference": "copy"}, BOTH),
        ({"name": "psft"}, ("old_logp",)),
        ({"name": "psft", "first": {"name": "prift", "for": 0.2}}, (*BOTH, "old_logp")),
    ],
)
def test_it_is_what_the_loss_reads_at_any_time_and_both_of_a_reference(loss, columns):
    assert computed(settings(**loss), CATALOGUE) == columns


def test_named_columns_need_no_loss_that_reads_them():
    assert computed(settings(name="nll"), CATALOGUE, ["old_logp", "ref_mass", "old_logp"]) == ("old_logp", "ref_mass")


def test_a_column_that_nobody_can_compute():
    with pytest.raises(ConflictError, match=r"--columns ratio: .* Known: ref_logp, ref_mass, old_logp\."):
        computed(settings(name="prift"), CATALOGUE, ["ref_logp", "ratio"])


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("asft", {"name": "asft"}),
        ("gift", {"name": "gift"}),
        ("asft", {"name": "asft", "first": {"name": "prift", "for": 0.2}}),
        ("gift", {"name": "prift", "first": {"name": "gift", "for": 0.2}}),
    ],
)
def test_a_whole_distribution_is_no_column(name, loss):
    said = rf"the loss {name} compares with the whole distribution .* `reference: base` .* `reference: copy`"
    with pytest.raises(ConflictError, match=said):
        computed(settings(**loss), CATALOGUE)


def test_a_loss_without_a_reference_says_so_and_which_have_one():
    with pytest.raises(ConflictError) as caught:
        computed(settings(name="dft"), CATALOGUE)
    (said,) = caught.value.problems
    assert said.startswith("the loss dft reads nothing that is computed beforehand: start `dft train`.")
    assert "Losses that do: prift, iw_sft, psft (`dft losses NAME`)" in said
    assert "`--columns ref_logp,ref_mass`" in said


def test_the_users_own_columns_go_along():
    weighed = settings(name="psft", weights={"column": "ratio"})
    assert carried(weighed, CATALOGUE) == ("ratio",)


def test_only_a_loss_that_reads_a_reference_is_told_of_its_columns():
    prift, psft = settings(name="prift", by="mass", reference="copy"), settings(name="psft")
    assert trained_with(prift, BOTH, CATALOGUE).as_written() == {
        "name": "prift",
        "reference": "columns",
        "by": "mass",
    }
    assert trained_with(psft, ("old_logp",), CATALOGUE) == psft
    assert trained_with(prift, ("ref_logp",), CATALOGUE) == prift, "by mass it does not read that"
