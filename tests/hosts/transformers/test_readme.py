"""README's two lines for a Trainer of one's own switch the loss on."""

from __future__ import annotations

import pytest
from support import oracle, readme, tiny, training

pytestmark = pytest.mark.host


def test_the_two_lines_train_dft(tmp_path):
    trainer = training.trainer(tmp_path, max_steps=1)
    expected = oracle.causal_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).item()
    before = training.trained(trainer.model)
    exec(readme.blocks()["transformers"], {"trainer": trainer})
    trainer.train()
    assert training.losses(trainer) == pytest.approx([expected], rel=1e-6)
    assert tiny.max_gap(before, training.trained(trainer.model)) > 1e-4, "nothing was trained"
