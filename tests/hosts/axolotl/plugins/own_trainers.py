"""Trainers of a user's own, for `trainer_cls:`."""

from axolotl.core.trainers.base import AxolotlTrainer


class Plain(AxolotlTrainer):
    """Changes nothing about the loss."""


class OwnLoss(AxolotlTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, inputs, *args, **kwargs)
