"""What of an ms-swift run would keep the loss from taking effect: one table, for `dft check` and for the run."""

from __future__ import annotations

from typing import Any

from dft_plugin.config.hosts import Conflict
from dft_plugin.config.rules import Config, Rule, above_one, is_given, is_on, is_positive, other_than

WHAT_MOVING_GAINS = (
    "The weights after a step are the same, and you gain: most of the memory of the logits (ms-swift's DFT makes all "
    "of them, and a float32 copy), the `dft/*` statistics, options such as `alpha`, and a refusal where ms-swift "
    "drops its own switch in silence (`loss_type`, `label_smoothing_factor`)."
)

_WEIGHTED = frozenset({"react", "hermes", "qwen", "agentflan", "alpha_umi"})
"""Parts of a `loss_scale` that multiply losses by factors."""

_TAKES_LABELS = "ms-swift takes the labels from the model, so that it would never be asked for our loss."

_MEGATRON = ("mcore_model", "tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size")
"""Keys that only `megatron sft` has."""


def is_weighted(loss_scale: Any) -> bool:
    """Say whether a `loss_scale` multiplies losses; of a name that a plugin adds, only the run knows."""
    return bool(_WEIGHTED & set(str(loss_scale).split("+")))


def _not_forced_binary(config: Config) -> bool:
    return not is_on(config.get("is_binary_loss_scale"))


def _is_off(value: Any) -> bool:
    return value is not None and not is_on(value)


LOSS_SCALE = Rule(
    "loss_scale",
    is_weighted,
    "{value} multiplies the loss of each token by a factor of its own; for that, " + _TAKES_LABELS,
    "Use those that only choose tokens (default, last_round, all, and +ignore_empty_think, +ignore_think_prefix), or "
    "leave out `loss:`.",
    beside=_not_forced_binary,
)

IS_BINARY = Rule(
    "is_binary_loss_scale",
    _is_off,
    "the loss of each token is multiplied by a factor of its own, even if that is 0 or 1; for that, " + _TAKES_LABELS,
    "Remove it, or leave out `loss:`.",
)

TEMPLATE = Rule(
    "template",
    is_given,
    "{value} computes a loss of its own.",
    "Leave out `loss:` for this model.",
)
"""Only the run knows which class stands behind a template's name."""

RULES = (
    Rule(
        "enable_dft_loss",
        is_on,
        f"ms-swift's own DFT would take the place of ours: {_TAKES_LABELS}",
        "Replace it by the line `loss: dft`. " + WHAT_MOVING_GAINS,
    ),
    Rule(
        "enable_channel_loss",
        is_on,
        f"to log a loss for each channel, {_TAKES_LABELS}",
        "Remove it, or leave out `loss:`.",
    ),
    Rule(
        "loss_type",
        is_given,
        "{value} would take the place of `loss:`.",
        "Remove it, or leave out `loss:`.",
    ),
    Rule(
        "label_smoothing_factor",
        is_positive,
        "ms-swift takes the labels from the model and trains smoothed cross-entropy.",
        "Remove it, or set it to 0.",
    ),
    LOSS_SCALE,
    IS_BINARY,
    Rule(
        "sequence_parallel_size",
        above_one,
        "the sequence is split over ranks, and ms-swift computes the loss of all shards by itself.",
        "Set it to 1, or leave out `loss:`.",
    ),
    Rule(
        "use_liger_kernel",
        is_on,
        "Liger replaces the model's forward when training starts, and computes cross-entropy in it.",
        "Set `use_liger_kernel: false` (our loss makes no logits, either), or leave out `loss:`.",
    ),
    Rule(
        "predict_with_generate",
        is_on,
        "an evaluation that generates computes no loss, of ours or any.",
        "Set `predict_with_generate: false`, and generate with `swift infer` afterwards.",
    ),
    Rule(
        "task_type",
        other_than("causal_lm"),
        "`loss:` weighs the tokens of supervised fine-tuning, and {value} has a loss of its own.",
        "Set `task_type: causal_lm`, or leave out `loss:`.",
    ),
    Rule(
        "rlhf_type",
        is_given,
        "`swift rlhf` trains a loss of its own ({value}).",
        "Train with `swift sft`, or leave out `loss:`.",
    ),
    *(
        Rule(
            key,
            is_given,
            "`megatron sft` computes its loss inside Megatron, from logits that are split over ranks.",
            "ms-swift's own `enable_dft_loss: true` is the better one there: it works on the split logits. Use it "
            "instead of `loss:`.",
        )
        for key in _MEGATRON
    ),
    Rule(
        "tuner_backend",
        lambda value: value == "unsloth",
        "Unsloth replaces the model's forward and computes cross-entropy in it, which was never run with ours in "
        "ms-swift.",
        "Set `tuner_backend: peft`, or leave out `loss:`.",
    ),
    Rule(
        "use_ray",
        is_on,
        "Ray starts workers that do not carry the loss.",
        "Remove it and start with torchrun (NPROC_PER_NODE=8), or leave out `loss:`.",
    ),
)
"""By key of the YAML, or of ms-swift's parsed arguments."""

COLUMNS = Conflict(
    "dataset",
    "ms-swift's templates encode rows without them.",
    "Choose a loss that reads no column, or train it in Axolotl, LLaMA-Factory or TRL.",
)
"""Where the loss reads columns."""
