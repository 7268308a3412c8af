"""What in a LLaMA-Factory run would keep the loss from taking effect: one table, for `dft check` and for the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from packaging.version import Version

from dft_plugin.config.hosts import Conflict

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
    """List every conflict of a run without USE_V1.

    Args:
        config: keys of the YAML, or of LLaMA-Factory's parsed arguments.
        environ: the environment of the run.
    """
    in_config = _in_config(config, CONFIG_RULES)
    in_environment = [
        rule.conflict(environ[rule.key], f"{rule.key}={environ[rule.key]}")
        for rule in ENVIRONMENT_RULES
        if rule.key in environ and rule.applies(environ[rule.key])
    ]
    return in_config + in_environment


def find_v1(config: Mapping[str, Any], version: str | None) -> list[Conflict]:
    """List every conflict of a run of the v1 trainer.

    Args:
        config: keys of the YAML.
        version: of LLaMA-Factory; None if it is not installed.
    """
    found = _in_config(config, V1_RULES)
    if version is not None and Version(version) < Version("0.9.5"):
        found.append(_OLD_V1.conflict(version, "USE_V1"))
    if config.get("batching_strategy") == "dynamic_padding_free" and config.get("flash_attn") != "flash_attention_2":
        found.append(_MIXED_ROWS.conflict(config.get("flash_attn", "sdpa"), "batching_strategy"))
    return found


def _in_config(config: Mapping[str, Any], rules: Sequence[Rule]) -> list[Conflict]:
    given = [(rule, config[rule.key]) for rule in rules if rule.key in config]
    return [rule.conflict(value, rule.key) for rule, value in given if rule.applies(value)]


def is_on(value: Any) -> bool:
    """Read a switch as LLaMA-Factory does, in a YAML or in the environment."""
    return str(value).lower() in ("true", "1", "y", "yes", "t")


def uses_v1(environ: Mapping[str, str]) -> bool:
    """Say whether `llamafactory-cli` would start the v1 trainer; it reads this switch by fewer words."""
    return environ.get("USE_V1", "0").lower() in ("true", "1", "y")


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


def _splits_context(value: Any) -> bool:
    try:
        # v1 takes a plugin's configuration as JSON text, too.
        config = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return False
    return isinstance(config, Mapping) and _is_split(config.get("cp_size"))


def _is_given(value: Any) -> bool:
    return value is not None


def _is_no_llm(value: Any) -> bool:
    return value not in (None, "llm")


_SEQUENCE_PARALLEL = "sequence parallelism reduces the loss of each shard by itself, which was never run with ours."

_STAGE = Rule(
    "stage",
    _is_other_stage,
    "`loss:` weighs the tokens of supervised fine-tuning, and stage {value} has a loss of its own.",
    "Set `stage: sft`, or leave out `loss:`.",
)

CONFIG_RULES = (
    _STAGE,
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
    Rule(
        "train_dataset",
        _is_given,
        "only LLaMA-Factory's v1 trainer reads it, which runs with USE_V1=1.",
        "Start with USE_V1=1 in the environment, or write `model_name_or_path` and `dataset` for the usual trainer.",
    ),
)
"""By key of the YAML."""

ENVIRONMENT_RULES = (
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

V1_RULES = (
    Rule(
        "model_name_or_path",
        _is_given,
        "LLaMA-Factory's v1 trainer, which USE_V1 starts, does not read it.",
        "Unset USE_V1, or write `model` and `train_dataset` for v1.",
    ),
    _STAGE,
    Rule(
        "dist_config",
        _splits_context,
        "with cp_size above 1, v1 computes cross-entropy in a function of its own.",
        "Set its `cp_size` to 1, or leave out `loss:`.",
    ),
    Rule(
        "model_class",
        _is_no_llm,
        "a model of the class {value} gives its tokens no probabilities.",
        "Set `model_class: llm`, or leave out `loss:`.",
    ),
)
"""By key of a YAML for USE_V1=1."""

_OLD_V1 = Rule(
    "USE_V1",
    _is_given,
    "the v1 trainer of LLaMA-Factory {value} is another one, which was never run with ours.",
    "Run: pip install 'llamafactory>=0.9.5,<0.9.6'. Or unset it.",
)

_MIXED_ROWS = Rule(
    "batching_strategy",
    _is_given,
    "with `flash_attn: {value}`, the rows that dynamic_padding_free puts behind one another attend to each other, and "
    "tokens get the weights of another text.",
    "Set `flash_attn: flash_attention_2`, or `batching_strategy: dynamic_batching`.",
)
