"""One run of the real part of the study is repeated here, by a config of this host's."""

from __future__ import annotations

import pytest
from support import asked

pytestmark = pytest.mark.host


def test_a_model_is_trained_and_asked_and_nothing_of_it_is_left(tmp_path):
    asked.assert_trained_and_asked(tmp_path, "LoRA", "DFT", "Axolotl")
