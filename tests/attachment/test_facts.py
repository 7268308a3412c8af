"""Which sequence a token is in, and where: of the tokens that go in, however their labels come."""

from __future__ import annotations

import pytest
import torch

from dft_plugin.functional import plan_for
from dft_plugin.hf.facts import facts_of

LABELS = torch.tensor([[-100, 11, 12, 13, 21, 22, 23, 24]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])


@pytest.mark.parametrize("shifted", [False, True])
def test_places_are_those_of_the_predicted_token(shifted):
    batch = {"labels": LABELS, "position_ids": POSITIONS}
    if shifted:
        batch["shift_labels"] = torch.nn.functional.pad(LABELS[:, 1:], (0, 1), value=-100)
    facts = facts_of(plan_for("iw_sft"), batch, None)
    assert facts.sequence_BS[0, :-1].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert facts.position_BS[0, :-1].tolist() == [1, 2, 3, 0, 1, 2, 3]


def test_position_ids_of_one_row_stand_for_all():
    facts = facts_of(plan_for("iw_sft"), {"labels": LABELS.repeat(2, 1), "position_ids": POSITIONS}, None)
    assert facts.sequence_BS[:, :-1].tolist() == [[0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 3, 3, 3, 3]]
