"""What TRL itself gets wrong, without dft-plugin: what docs/upstream.md lists, shown."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard
from support import training

pytestmark = pytest.mark.host


def test_the_card_of_a_run_with_its_own_dft_says_sft_and_no_more(tmp_path):
    trainer = training.sft_trainer(tmp_path, loss_type="dft", max_steps=1)
    trainer.train()
    trainer.create_model_card()
    text = ModelCard.load(tmp_path / "README.md").text
    assert "This model was trained with SFT." in text
    assert "dft" not in text.lower().replace(str(tmp_path).lower(), "")
    assert "2508.05629" not in text
