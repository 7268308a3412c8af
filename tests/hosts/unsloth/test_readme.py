"""README's two lines switch the loss on in a trainer of Unsloth's."""

from __future__ import annotations

import pytest
from support import oracle, readme, tiny, training

from .fast import lora

pytestmark = pytest.mark.host


def test_the_two_lines_train_dft(tmp_path):
    trainer = lora(tmp_path, max_steps=1)
    expected = oracle.causal_loss(trainer.model.train(), dict(next(iter(trainer.get_train_dataloader())))).item()
    before = training.trained(trainer.model)
    exec(readme.blocks()["transformers"], {"trainer": trainer})
    trainer.train()
    assert training.losses(trainer) == pytest.approx([expected], rel=1e-6)
    assert tiny.max_gap(before, training.trained(trainer.model)) > 1e-5, "nothing was trained"
