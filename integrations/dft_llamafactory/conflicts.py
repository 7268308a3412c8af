"""What in a LLaMA-Factory run would keep the loss from taking effect: one table, for `dft check` and for the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dft_plugin.host import Conflict

WHAT_MOVING_GAINS = (
    "The weights after a step are the same, and you gain: the router's auxiliary loss of a MoE model (LLaMA-Factory's "
    "DFT drops it), steps with a micro-batch that has no target (LLaMA-Factory's DFT crashes there), the `dft/*` "
    "statistics, options such as `alpha`, and most of the memory of the logits."
)


@dataclass(frozen=True)
class Rule:
    """One refusal.

    Attributes:
        key: in the YAML, or an environment variable.
        applies: whether a value is in the way.
        problem: what would happen; `{value}` stands for the value.
        remedy: what to change.
    """

    key: str
    applies: Callable[[Any], bool]
    problem: str
    remedy: str

    def conflict(self, value: Any, label: str) -> Conflict:
        """Return the conflict for a value to which the rule applies."""
        return Conflict(label, self.problem.format(value=value), self.remedy)


def find(config: Mapping[str, Any], environ: Mapping[str, str]) -> list[Conflict]:
    """List every conflict.

    Args:
        config: keys of the YAML, or of LLaMA-Factory's parsed arguments.
        environ: the environment of the run.
    """
    in_config = [
        rule.conflict(config[rule.key], rule.key)
        for rule in CONFIG_RULES
        if rule.key in config and rule.applies(config[rule.key])
    ]
    in_environment = [
        rule.conflict(environ[rule.key], f"{rule.key}={environ[rule.key]}")
        for rule in ENVIRONMENT_RULES
        if rule.key in environ and rule.applies(environ[rule.key])
    ]
    return in_config + in_environment


def is_on(value: Any) -> bool:
    """Read a switch as LLaMA-Factory does, in a YAML or in the environment."""
    return str(value).lower() in ("true", "1", "y", "yes", "t")


def _is_other_stage(value: Any) -> bool:
    return value not in (None, "sft")


def _is_positive(value: Any) -> bool:
    try:
        return float(value or 0) > 0
    except (TypeError, ValueError):
        # Not a number: LLaMA-Factory's parser says so better than we can.
        return False


def _is_split(value: Any) -> bool:
    try:
        return int(value or 1) > 1
    except (TypeError, ValueError):
        return False


def _splits_sequences(value: Any) -> bool:
    return isinstance(value, Mapping) and _is_split(value.get("sp_size"))


_SEQUENCE_PARALLEL = "sequence parallelism reduces the loss of each shard by itself, which was never run with ours."

CONFIG_RULES = (
    Rule(
        "stage",
        _is_other_stage,
        "`loss:` weighs the tokens of supervised fine-tuning, and stage {value} has a loss of its own.",
        "Set `stage: sft`, or leave out `loss:`.",
    ),
    Rule(
        "use_dft_loss",
        is_on,
        "LLaMA-Factory's own DFT would take the place of ours.",
        "Replace it by the line `loss: dft`. " + WHAT_MOVING_GAINS,
    ),
    Rule(
        "use_asft_loss",
        is_on,
        "ASFT would take the place of `loss:`.",
        "Remove it, or leave out `loss:`.",
    ),
    Rule(
        "use_eaft_loss",
        is_on,
        "EAFT would take the place of `loss:`.",
        "Remove it, or leave out `loss:`.",
    ),
    Rule(
        "label_smoothing_factor",
        _is_positive,
        "the Trainer takes the labels from the model and trains smoothed cross-entropy.",
        "Remove it, or set it to 0.",
    ),
    Rule(
        "use_kt",
        is_on,
        "KTransformers trains with a trainer and a forward pass of its own.",
        "Set `use_kt: false`, or leave out `loss:`.",
    ),
    Rule(
        "use_hyper_parallel",
        is_on,
        "HyperParallel trains with a trainer of its own.",
        "Set `use_hyper_parallel: false`, or leave out `loss:`.",
    ),
    Rule(
        "sequence_parallel_size",
        _is_split,
        _SEQUENCE_PARALLEL,
        "Set it to 1, or leave out `loss:`.",
    ),
    Rule(
        "parallelism_config",
        _splits_sequences,
        _SEQUENCE_PARALLEL,
        "Set its `sp_size` to 1, or leave out `loss:`.",
    ),
)
"""By key of the YAML."""

ENVIRONMENT_RULES = (
    Rule(
        "USE_V1",
        is_on,
        "LLaMA-Factory's v1 trainer computes cross-entropy in a method of its own, and reads other keys.",
        "Unset it, or leave out `loss:`.",
    ),
    Rule(
        "USE_MCA",
        is_on,
        "the loss is computed inside Megatron.",
        "Unset it, or leave out `loss:`.",
    ),
    Rule(
        "USE_MEGATRON_BRIDGE",
        is_on,
        "the loss is computed inside Megatron.",
        "Unset it, or leave out `loss:`.",
    ),
    Rule(
        "USE_RAY",
        is_on,
        "Ray starts workers that do not carry the loss.",
        "Unset it and start with torchrun (FORCE_TORCHRUN=1), or leave out `loss:`.",
    ),
    Rule(
        "USE_KT",
        is_on,
        "KTransformers trains with a trainer and a forward pass of its own.",
        "Unset it, or leave out `loss:`.",
    ),
    Rule(
        "PARALLELISM_CONFIG_SP_SIZE",
        _is_split,
        _SEQUENCE_PARALLEL,
        "Unset it, or leave out `loss:`.",
    ),
)
"""By environment variable."""
