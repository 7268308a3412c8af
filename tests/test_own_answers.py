"""How likely a model is to give the demonstrated answers itself: whole answers, beside the model's own logits."""

from __future__ import annotations

import pytest
import torch
from support import tiny

from dft_plugin.hf.probing import Compared, Probe, looking
from dft_plugin.plans import plan_for

LABELS = [
    # Two answers, the second up to the end of the row; the next row begins with one.
    [-100, 5, 6, -100, -100, 7, 8, 9],
    [5, 6, 7, -100, -100, -100, -100, -100],
    # The label of the first token is no target.
    [-100, -100, 4, -100, 4, 5, -100, 3],
]
ANSWERS = [(0, [1, 2]), (0, [5, 6, 7]), (1, [1, 2]), (2, [2]), (2, [4, 5]), (2, [7])]


def probed(kinds, batches):
    model = tiny.llama()
    probe = Probe({}, kinds)
    with looking(model, plan_for(Compared())) as attached, torch.no_grad():
        for rows in batches:
            labels = torch.tensor([LABELS[row] for row in rows])
            inputs = {"input_ids": labels.clamp(min=1), "labels": labels}
            probe.add(attached.score(model, inputs, want_logits=False).result)
    return probe


def by_hand(apart=()):
    labels = torch.tensor(LABELS)
    with torch.no_grad():
        logp = tiny.llama()(labels.clamp(min=1)).logits.double().log_softmax(-1)
    whole = [
        sum(logp[row, at - 1, LABELS[row][at]].item() for at in places if LABELS[row][at] not in apart)
        for row, places in ANSWERS
    ]
    return torch.tensor(whole).double().exp().mean().item()


@pytest.mark.parametrize("batches", [[[0, 1, 2]], [[0], [1, 2]]])
def test_an_answer_is_targets_that_follow_one_another(batches):
    probe = probed({}, batches)
    numbers = probe.finding()
    assert probe.answers == len(ANSWERS)
    assert numbers["answer_tokens"] == pytest.approx(11 / 6)
    assert numbers["own_answers"] == pytest.approx(by_hand(), rel=1e-4)


def test_what_always_learn_can_teach_is_no_part_of_it():
    kinds = {"eos": (9,), "added": (3,), "special": (4,)}
    assert probed(kinds, [[0, 1, 2]]).finding()["own_answers"] == pytest.approx(by_hand({9, 3}), rel=1e-4)
    assert by_hand({9, 3}) != pytest.approx(by_hand({9, 3, 4}), rel=1e-2)


def test_a_row_ends_where_it_ends():
    """Labels that a host has shifted may have a target in the last place of a row."""
    model, probe = tiny.llama(), Probe({}, {})
    shifted = torch.tensor([[-100, 5, 6], [7, -100, -100]])
    inputs = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "shift_labels": shifted, "labels": shifted}
    with looking(model, plan_for(Compared())) as attached, torch.no_grad():
        probe.add(attached.score(model, inputs, want_logits=False).result)
    assert probe.answers == 2
