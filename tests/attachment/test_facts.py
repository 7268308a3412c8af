"""Which sequence a token is in, and where: of the tokens that go in, however their labels come."""

from __future__ import annotations

import pytest
import torch

from dft_plugin.core.targets import Facts, select
from dft_plugin.hf import facts
from dft_plugin.plans import plan_for

LABELS = torch.tensor([[-100, 11, 12, 13, 21, 22, 23, 24]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])


@pytest.mark.parametrize("shifted", [False, True])
def test_places_are_those_of_the_predicted_token(shifted):
    batch = {"labels": LABELS, "position_ids": POSITIONS}
    if shifted:
        batch["shift_labels"] = torch.nn.functional.pad(LABELS[:, 1:], (0, 1), value=-100)
    found = facts.facts_of(plan_for("iw_sft"), batch, None)
    assert found.sequence_BS[0, :-1].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert found.position_BS[0, :-1].tolist() == [1, 2, 3, 0, 1, 2, 3]


def test_position_ids_of_one_row_stand_for_all():
    found = facts.facts_of(plan_for("iw_sft"), {"labels": LABELS.repeat(2, 1), "position_ids": POSITIONS}, None)
    assert found.sequence_BS[:, :-1].tolist() == [[0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 3, 3, 3, 3]]


PACKED = {
    "position_ids": POSITIONS,
    "seq_idx": torch.tensor([[5, 5, 5, 5, 3, 3, 3, 3]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2]]),
    "cu_seqlens": torch.tensor([[0, 4, 8]], dtype=torch.int32),
    "cu_seq_lens_q": torch.tensor([0, 4, 8]),
}


@pytest.mark.parametrize("name", PACKED)
def test_whatever_says_where_a_sequence_begins(name):
    # A mask of ones says nothing.
    batch = {"attention_mask": torch.ones(1, 8), name: PACKED[name]}
    sequence_BS = facts.sequences(batch, LABELS)
    assert sequence_BS.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert facts.positions(sequence_BS).tolist() == POSITIONS.tolist()


def test_a_mask_of_numbers_says_more_than_positions_and_one_of_ones_less():
    packed = {"position_ids": torch.arange(8)[None], "attention_mask": PACKED["attention_mask"]}
    assert facts.sequences(packed, LABELS).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    padded = {"position_ids": POSITIONS, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])}
    assert facts.sequences(padded, LABELS).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_each_row_is_a_sequence_where_nothing_is_said():
    sequence_BS = facts.sequences({}, LABELS.repeat(2, 1))
    assert sequence_BS.tolist() == [[0] * 8, [1] * 8]
    assert facts.positions(sequence_BS).tolist() == [[*range(8)]] * 2


def test_sequences_without_targets_are_left_out_of_the_numbering():
    labels = torch.tensor([[1, -100, 2, 3], [-100, -100, -100, -100], [4, 5, -100, 6]])
    # One may be split over rows.
    index = torch.tensor([[7, 7, 2, 2], [9, 9, 9, 9], [7, 7, 7, 4]])
    chosen = select(labels, facts=Facts(index, torch.zeros_like(index)))
    assert chosen.targets(torch.device("cpu")).sequence_T.tolist() == [2, 0, 0, 2, 2, 1]
    none = select(torch.full((1, 4), -100), facts=Facts(index[:1], index[:1]))
    assert none.targets(torch.device("cpu")).sequence_T.tolist() == []
