"""What of TRL is in the way of the loss, or superseded by it: keys, trainers, models. No TRL, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dft_plugin.config.rules import Config, Rule, equals, is_on, is_positive, other_than
from dft_plugin.errors import ConflictError


def _is_file(given: object) -> bool:
    return isinstance(given, str) and Path(given).is_file()


RULES = (
    Rule(
        "label_smoothing_factor",
        is_positive,
        "TRL would train smoothed cross-entropy.",
        "Remove it, or set it to 0.",
    ),
    Rule(
        "liger_kernel_config.fused_linear_cross_entropy",
        is_on,
        "It replaces the model's forward when training starts.",
        "Set it to false; Liger's layer kernels stay on.",
        beside=lambda config: is_on(config.get("use_liger_kernel")),
    ),
    Rule(
        "dataset_name",
        _is_file,
        "TRL takes the name or the folder of a dataset there, and would look for one of that name.",
        "Write `datasets: [{path: json, data_files: FILE}]` in its place (path: csv or parquet, for those).",
    ),
)


def _packs(config: Config) -> bool:
    return is_on(config.get("packing"))


BOUNDARY_RULES = (
    Rule(
        "packing_strategy",
        equals("wrapped"),
        "it says nowhere where an example ends, and this loss looks at whole sequences.",
        "Set `packing_strategy: bfd`.",
        beside=_packs,
    ),
)
"""By SFTConfig, where a loss looks at whole sequences."""

BEFOREHAND_RULES = (
    Rule(
        "packing_strategy",
        other_than("bfd"),
        "it cuts rows and goes on with the rest elsewhere, so that nobody knows beforehand what a token stands behind "
        "and what a reference says of it.",
        "Set `packing_strategy: bfd`.",
        beside=_packs,
    ),
)
"""By SFTConfig, for `dft reference`."""

NO_SPLIT = (
    "{config}: the data has no split `{split}` to evaluate on. Name one that it has "
    "(`dataset_test_split: validation`), or split some rows off."
)
"""For `dft evaluate`."""


def superseded(config: Config, loss: str) -> list[str]:
    """List, in words, which of TRL's settings have no effect while `loss` is on."""
    if "loss_type" in config:
        return [f"`loss: {loss}` wins over `loss_type: {config['loss_type']}`"]
    return ["TRL's fused LM head (loss_type: nll)"]


_LOSSES = ("compute_loss", "training_step", "get_batch_loss_metrics")
"""Where TRL's trainers compute what they train."""

_PACKAGES = ("trl", "unsloth", "unsloth_zoo")
_SFT = ("SFTTrainer", "_UnslothSFTTrainer", "UnslothSFTTrainer", "UnslothTrainer")
"""Unsloth writes TRL's trainers anew, UnslothDPOTrainer made from _UnslothDPOTrainer, and has some of its own."""


def refuse_other_losses(trainer: object) -> None:
    """Refuse a trainer of TRL's that trains something else than the likelihood of target tokens.

    Raises:
        ConflictError: names the classes whose loss it is.
    """
    found = own_losses(trainer)
    if found:
        raise ConflictError(
            [
                f"{type(trainer).__name__} trains a loss of its own, that of {_whose(found)}, and `loss:` "
                "replaces only what SFTTrainer trains. Leave out `loss:`, or use SFTTrainer."
            ]
        )


def own_losses(trainer: object) -> list[str]:
    """Name TRL's classes among the trainer's, but for SFTTrainer, that compute a loss of their own.

    A user's subclass of SFTTrainer has none; GKDTrainer, which is made from it as well, has one, and so have
    DPOTrainer, RewardTrainer and their like, and whatever a user makes from them.
    """
    others = (cls for cls in _theirs(type(trainer)) if cls.__name__ not in _SFT)
    return [cls.__name__ for cls in others if any(name in vars(cls) for name in _LOSSES)]


def _theirs(kind: type) -> Iterator[type]:
    # What Unsloth writes is a file beside its cache, named as the class in it.
    return (cls for cls in kind.__mro__ if cls.__module__.split(".")[0] in _PACKAGES or "_Unsloth" in cls.__name__)


def _whose(names: Sequence[str]) -> str:
    trls = [name for name in names if "Unsloth" not in name]
    return f"TRL's {' and '.join(trls)}" if trls else f"Unsloth's {' and '.join(names)}"


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
