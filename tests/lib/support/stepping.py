"""Steps of a model, watched for what they wait for."""

from __future__ import annotations

import contextlib

import torch

from dft_plugin import attach
from dft_plugin.hf.facts import COLUMN
from dft_plugin.objectives import Clock
from support import tiny, waits

COUNTED = torch.tensor([True, False, True])
"""Rows of a batch that statistics count; a loader's business, so it is on the CPU."""


class Steps:
    """Steps of a model, ours if a loss is given."""

    def __init__(self, case, loss=None, device="cpu"):
        self.model = case.make().train(case.training).to(device)
        self.attachment = attach(self.model, loss) if loss is not None else None
        self.case, self.device, self.step = case, device, 0
        if not case.training and loss is not None:
            # A run has trained before it evaluates.
            self.model.train()
            self.model(**self.batch()).loss.backward()
            self.model.eval()

    def batch(self):
        self.step += 1
        batch = tiny.batch(masked=self.step, seed=self.step)
        if self.attachment is not None:
            self.attachment.clock = Clock(self.step, 10, 0.1 * self.step)
            batch |= {f"{COLUMN}{name}": -torch.rand(batch["labels"].shape) for name in self.case.columns}
        return {key: value.to(self.device) for key, value in {**batch, **self.case.given(batch)}.items()}

    def __call__(self, batch):
        how = {}
        if self.case.counted:
            how["counted_B"] = COUNTED
        if self.case.want_logits is not None:
            how["want_logits"] = self.case.want_logits
        answering = contextlib.nullcontext() if self.attachment is None else self.attachment.answering(**how)
        with answering, torch.set_grad_enabled(self.case.training):
            output = self.model(**batch, **({"num_items_in_batch": 48} if self.case.splits else {}))
            if self.case.training:
                output.loss.backward()


def watched(case, loss=None):
    """What the second and the third step wait for."""
    steps, seen = Steps(case, loss), []
    steps(steps.batch())
    for _ in range(2):
        batch = steps.batch()
        with waits.watching(COUNTED) as found:
            steps(batch)
        seen.append(found)
    return seen
