"""On which of TRL's trainers and models our loss can be put. Imports nothing of TRL: its modules are slow to load."""

from __future__ import annotations

from collections.abc import Iterator

from dft_plugin.errors import ConflictError

_LOSSES = ("compute_loss", "training_step", "get_batch_loss_metrics")
"""Where TRL's trainers compute what they train."""


def refuse_other_losses(trainer: object) -> None:
    """Refuse a trainer of TRL's that trains something else than the likelihood of target tokens.

    Raises:
        ConflictError: names the classes whose loss it is.
    """
    found = own_losses(trainer)
    if found:
        raise ConflictError(
            [
                f"{type(trainer).__name__} trains a loss of its own, that of TRL's {' and '.join(found)}, and `loss:` "
                "replaces only what SFTTrainer trains. Leave out `loss:`, or use SFTTrainer."
            ]
        )


def own_losses(trainer: object) -> list[str]:
    """Name TRL's classes among the trainer's, but for SFTTrainer, that compute a loss of their own.

    A user's subclass of SFTTrainer has none; GKDTrainer, which is made from it as well, has one, and so have
    DPOTrainer, RewardTrainer and their like, and whatever a user makes from them.
    """
    others = (cls for cls in _trls(type(trainer)) if cls.__name__ != "SFTTrainer")
    return [cls.__name__ for cls in others if any(name in vars(cls) for name in _LOSSES)]


def _trls(kind: type) -> Iterator[type]:
    return (cls for cls in kind.__mro__ if cls.__module__.split(".")[0] == "trl")


def attach_problem(model: object) -> str | None:
    """Say why `attach` would not do on a model whose forward is TRL's, or None."""
    function = getattr(getattr(model, "forward", None), "__func__", None)
    home = getattr(function, "__globals__", {}).get("__name__", "")
    if home != "trl.trainer.utils":
        return None
    return (
        "the model belongs to one of TRL's trainers, which has put a forward of its own on it and asks that for "
        "log-probabilities, not for a loss. Put the loss on the trainer: `dft_plugin.activate(trainer)`; or attach it "
        "to a model that no trainer has taken."
    )
