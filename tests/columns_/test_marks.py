"""Token ids that say which message they are of."""

from __future__ import annotations

import numpy as np

from dft_plugin.core.targets import IGNORE_INDEX
from dft_plugin.hf.passports import marked, read_marks


def test_what_is_cut_and_joined_still_knows_its_message():
    ids = [1, *marked([5, 6], 1), *marked([7, 8, 9], 2)[:2]]
    found, labels, message_S = read_marks(ids, [IGNORE_INDEX] * 3 + ids[3:])
    assert found == [1, 5, 6, 7, 8]
    assert labels == [IGNORE_INDEX] * 3 + [7, 8]
    assert message_S.tolist() == [0, 1, 1, 2, 2]


def test_a_label_that_a_host_puts_there_by_itself_is_of_the_message_before():
    ids = [*marked([5, 6], 1), *marked([7], 2), *marked([8], 3)]
    _, labels, message_S = read_marks(ids, [IGNORE_INDEX, IGNORE_INDEX, ids[2], 4])
    assert labels[3] == 4
    assert message_S.tolist() == [1, 1, 2, 2]


def test_the_largest_id_of_any_vocabulary_fits():
    ids = marked([2**31 - 1], 3)
    found, labels, message_S = read_marks(ids, ids)
    assert (found, labels) == ([2**31 - 1], [2**31 - 1])
    assert np.array_equal(message_S, [3])
