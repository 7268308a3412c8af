"""What the loss is predicted to cost on many GPUs."""

from __future__ import annotations

import pytest

from benchmarks import cost
from dft_plugin.core.stats import LossStats
from reliability.scale import predicting
from reliability.scale.counting import Collective
from reliability.scale.models import LAYOUTS, MOE, SEVEN, SEVENTY


@pytest.mark.parametrize(
    ("model", "billions", "at_work"), [(SEVEN, 7.6, 7.1), (SEVENTY, 70.6, 69.5), (MOE, 235.1, 21.6)]
)
def test_the_sizes_come_to_the_parameters_of_the_names(model, billions, at_work):
    assert model.parameters / 1e9 == pytest.approx(billions, abs=0.06)
    assert model.at_work / 1e9 == pytest.approx(at_work, abs=0.06)


def test_a_whole_head_costs_what_the_model_of_one_card_says():
    whole = next(layout for layout in LAYOUTS if layout.model is SEVEN)
    found = predicting.predict(whole, trained=True)
    head = next(head for head in cost.HEADS if head.name == "Qwen2.5 7B")
    assert (whole.model.width, whole.model.vocab) == (head.width, head.vocab)
    alone = cost.chunked(cost.DEVICES[0], predicting.TOKENS, cost.Head("", head.width, head.vocab, trained=True))
    assert (found.loss, found.memory, found.rows) == (alone.seconds, alone.memory, alone.rows)
    assert found.sent == found.wire == 0


def test_a_split_head_by_hand():
    split = next(layout for layout in LAYOUTS if layout.model is SEVENTY and layout.split == 8)
    found = predicting.predict(split, trained=True)
    assert found.rows == 4096, "two chunks"
    hand = 2 * 7 / 8 * (8192 * 4 * 3 + 2 * 8192 * 8192) + 7 / 8 * 32 * 8
    assert found.sent * 8192 == pytest.approx(hand)
    assert predicting.head_of(split, True).vocab == 128_256 // 8
    assert predicting.gathered(split) == pytest.approx(7 / 8 * 2 * 128_256 + 2 * 7 / 8 * 2 * 8192)


def test_a_last_chunk_may_be_short():
    found = predicting.split_step(tokens=10, rows=4, width=3, ranks=2, sums=3, item=2)
    sizes = [64, 16, 48, 16, 48, 8, 24, 60]
    assert found == [Collective("all-gather", 64), *(Collective("all-reduce", size) for size in sizes[1:])]


def test_the_bytes_of_a_log_are_those_of_the_statistics():
    stats = LossStats.zero(names=("one", "two"))
    assert predicting.log_bytes(names=2) == (stats.sums_K.numel() + stats.counts_K.numel() + 1) * 8


def test_what_does_not_fit_is_said():
    whole = {layout.model: layout for layout in LAYOUTS if layout.split == 1}
    assert predicting.fits(whole[SEVEN], True, 8)
    assert not predicting.fits(whole[SEVENTY], True, 8)
    assert predicting.fits(whole[SEVENTY], True, 64)
    assert predicting.fits(whole[MOE], False, 8)
