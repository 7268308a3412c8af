"""A model that sees: ms-swift's hook in front of its forward reads ours as the model's own."""

from __future__ import annotations

import inspect

import pytest
import torch

pytest.importorskip("swift")

from support import swift_runs

pytestmark = pytest.mark.host


def test_the_hook_that_encodes_pictures_passes_on_what_our_signature_names(home, seeing, tmp_path):
    run = swift_runs.train(swift_runs.config(home, tmp_path / "out", **seeing, max_steps=1), "dft")
    model, template = run.trainer.model, run.trainer.template
    own = inspect.signature(type(model).forward)
    assert list(inspect.signature(model.forward).parameters) == list(own.parameters)[1:]
    (batch,) = run.batches
    given = {**batch, "position_ids": torch.arange(4)[None]}
    _, kwargs = template.pre_forward_hook(model, (), dict(given))
    assert kwargs.keys() == given.keys()


def test_the_picture_matters(home, seeing, tmp_path):
    """A loss that ignored it would be the same for a black one."""
    run = swift_runs.train(swift_runs.config(home, tmp_path / "out", **seeing, max_steps=1), "dft")
    (batch,) = run.batches
    model = run.trainer.model.eval()
    with torch.no_grad():
        seen = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        dark = {**batch, "pixel_values": torch.zeros_like(batch["pixel_values"])}
        unseen = model(**{key: value for key, value in dark.items() if key != "labels"}).logits
    assert float((seen - unseen).abs().max()) > 1e-3


def test_laid_end_to_end_it_refuses_a_loss_of_whole_sequences(home, seeing, tmp_path):
    from dft_plugin import activate
    from dft_plugin.errors import ConflictError

    run = swift_runs.train(swift_runs.config(home, tmp_path / "out", **seeing, max_steps=1), "dft")
    run.trainer.template.padding_free = True
    with pytest.raises(ConflictError, match=r"`packing` \(or `padding_free`\) of a model that sees"):
        activate(run.trainer, {"name": "iw_sft", "reference": "copy"})
