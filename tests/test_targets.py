"""The ignore index, the label shift, the count."""

from __future__ import annotations

import pytest
import torch

from dft_plugin.core import targets
from dft_plugin.errors import LabelError

IGNORED = -100


def test_the_ignore_index_is_the_one_of_torch():
    assert torch.nn.CrossEntropyLoss().ignore_index == targets.IGNORE_INDEX == IGNORED


def test_shift_puts_each_label_under_the_state_that_predicts_it():
    labels_BS = torch.tensor([[7, 8, 9], [4, IGNORED, 6]])
    assert targets.shift(labels_BS).tolist() == [[8, 9, IGNORED], [IGNORED, 6, IGNORED]]


def test_shift_leaves_the_labels_as_they_are():
    labels_S = torch.tensor([7, 8, 9])
    targets.shift(labels_S)
    assert labels_S.tolist() == [7, 8, 9]


def test_shift_fills_the_last_position_with_the_ignore_index_that_is_asked_for():
    assert targets.shift(torch.tensor([7, 8, 9]), ignore_index=-1).tolist() == [8, 9, -1]


def test_a_sequence_of_one_token_has_no_target():
    assert targets.shift(torch.tensor([[7], [8]])).tolist() == [[IGNORED], [IGNORED]]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_shift_keeps_the_dtype(dtype):
    assert targets.shift(torch.tensor([7, 8], dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_select_finds_the_targets_whatever_the_integer_dtype(dtype):
    chosen = targets.select(torch.tensor([[IGNORED, 3], [0, IGNORED]], dtype=dtype))
    assert chosen.positions_T.tolist() == [1, 2]
    assert chosen.ids_T.tolist() == [3, 0]
    assert chosen.ids_T.dtype == chosen.positions_T.dtype == torch.int64
    assert chosen.count == 2


def test_no_unsigned_label_is_taken_for_the_ignore_index():
    # -100 is 156 modulo 256.
    chosen = targets.select(torch.tensor([156, 3], dtype=torch.uint8))
    assert chosen.positions_T.tolist() == [0, 1]
    assert chosen.ids_T.tolist() == [156, 3]


def test_select_reads_labels_that_are_not_contiguous():
    labels = torch.tensor([[1, 9, 2], [3, 9, IGNORED]])[:, ::2]
    assert targets.select(labels).ids_T.tolist() == [1, 2, 3]


def test_a_token_of_the_vocabulary_can_be_the_ignore_index():
    chosen = targets.select(torch.tensor([0, 5, 0, 2]), ignore_index=0)
    assert chosen.positions_T.tolist() == [1, 3]
    assert chosen.ids_T.tolist() == [5, 2]


@pytest.mark.parametrize("labels", [[], [IGNORED, IGNORED]])
def test_nothing_to_score_is_no_error(labels):
    chosen = targets.select(torch.tensor(labels, dtype=torch.int64))
    chosen.require_within(4)
    assert chosen.shape == (len(labels),)
    assert chosen.count == chosen.positions_T.numel() == 0


def test_the_rows_of_what_is_scored():
    labels_BS = torch.tensor([[IGNORED, 3], [0, IGNORED]])
    chosen, hidden_BSD = targets.select(labels_BS), torch.arange(8.0).view(2, 2, 2)
    assert chosen.rows(hidden_BSD).tolist() == [[2, 3], [4, 5]]
    assert chosen.mask(torch.device("cpu")).tolist() == [[False, True], [True, False]]


def test_rows_of_which_all_are_scored_are_no_copy():
    hidden_BSD = torch.zeros(2, 3, 4)
    rows_TD = targets.select(torch.zeros(2, 3, dtype=torch.long)).rows(hidden_BSD)
    assert rows_TD.shape == (6, 4)
    assert rows_TD.data_ptr() == hidden_BSD.data_ptr()


def test_the_ends_of_the_vocabulary_are_allowed():
    targets.select(torch.tensor([0, 3])).require_within(4)


@pytest.mark.parametrize(("labels", "shown"), [([1, 4], 4), ([-1, 9], -1), ([-101], -101)])
def test_a_label_outside_the_vocabulary_is_refused_with_what_to_check(labels, shown):
    with pytest.raises(LabelError) as caught:
        targets.select(torch.tensor(labels)).require_within(4)
    assert str(caught.value) == (
        f"labels hold {shown}, but the model has 4 logits (allowed: 0 to 3, or -100 for positions "
        "to ignore). Check that the tokenizer belongs to the model, and resize the embeddings "
        "after adding tokens."
    )


def test_another_ignore_index_makes_minus_100_a_label_outside_the_vocabulary():
    with pytest.raises(LabelError, match=r"labels hold -100, .* or 0 for positions to ignore"):
        targets.select(torch.tensor([IGNORED, 2]), ignore_index=0).require_within(4)


def test_shift_of_no_positions_is_none():
    assert targets.shift(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0)
