"""What in a LLaMA-Factory run would keep the loss from taking effect: one table, for `dft check` and for the run."""

from __future__ import annotations

from collections.abc import Mapping

from dft_plugin.config import rules
from dft_plugin.config.hosts import Conflict
from dft_plugin.config.rules import Config, Rule, above_one, is_given, is_on, is_positive, other_than

WHAT_MOVING_GAINS = (
    "The weights after a step are the same, and you gain: the router's auxiliary loss of a MoE model (LLaMA-Factory's "
    "DFT drops it), steps with a micro-batch that has no target (LLaMA-Factory's DFT crashes there), the `dft/*` "
    "statistics, options such as `alpha`, and most of the memory of the logits."
)


def find(config: Config, environ: Mapping[str, str]) -> list[Conflict]:
    """List every conflict of a run without USE_V1.

    Args:
        config: keys of the YAML, or of LLaMA-Factory's parsed arguments.
        environ: the environment of the run.
    """
    in_environment = rules.find(ENVIRONMENT_RULES, environ, "{key}={value}")
    return rules.find(CONFIG_RULES, config) + in_environment


def superseded(config: Config) -> list[str]:
    """List, in words, which of LLaMA-Factory's settings have no effect on the loss while ours is on."""
    found = ["LLaMA-Factory's cross-entropy"]
    if is_on(config.get("enable_liger_kernel")):
        found.append("Liger's fused loss (`enable_liger_kernel`); its layer kernels stay")
    kernels = config.get("kernel_config")
    if isinstance(kernels, Mapping) and kernels.get("name") == "liger_kernel" and kernels.get("include_kernels"):
        found.append("Liger's cross-entropy (`kernel_config`); its layer kernels stay")
    return found


def losing_columns(config: Config) -> list[Conflict]:
    """List what drops columns of the data."""
    return rules.find(COLUMN_RULES, config)


def uses_ray(environ: Mapping[str, str]) -> bool:
    """Say whether LLaMA-Factory would start workers of Ray's; it reads this switch by fewer words."""
    return environ.get("USE_RAY", "0").lower() in ("true", "1", "y")


_SEQUENCE_PARALLEL = "sequence parallelism reduces the loss of each shard by itself, which was never run with ours."

STAGE = Rule(
    "stage",
    other_than("sft"),
    "`loss:` weighs the tokens of supervised fine-tuning, and stage {value} has a loss of its own.",
    "Set `stage: sft`, or leave out `loss:`.",
)

CONFIG_RULES = (
    STAGE,
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
        is_positive,
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
        above_one,
        _SEQUENCE_PARALLEL,
        "Set it to 1, or leave out `loss:`.",
    ),
    Rule(
        "parallelism_config.sp_size",
        above_one,
        _SEQUENCE_PARALLEL,
        "Set it to 1, or leave out `loss:`.",
    ),
    Rule(
        "train_dataset",
        is_given,
        "only LLaMA-Factory's v1 trainer reads it, which runs with USE_V1=1.",
        "Start with USE_V1=1 in the environment, or write `model_name_or_path` and `dataset` for the usual trainer.",
    ),
)
"""By key of the YAML."""

COLUMN_RULES = (
    Rule(
        "predict_with_generate",
        is_on,
        "an evaluation that generates prepares its rows without them.",
        "Set `predict_with_generate: false`, and generate in a run of its own.",
    ),
)
"""By key of the YAML, where the loss reads columns."""

BEFOREHAND_RULES = (
    Rule(
        "neat_packing",
        is_on,
        "LLaMA-Factory packs while it tokenises, and a row of its `tokenized_path` is several sequences, which "
        "`dft reference` would run as one.",
        "Set `neat_packing: false`.",
    ),
)
"""By key of the YAML, for `dft reference`."""

MANY_DEVICES = (
    "this command runs in one process, in which LLaMA-Factory takes one device: show it one, `CUDA_VISIBLE_DEVICES=0 "
    "dft ... {config}`."
)

OTHER_TRAINER = (
    "LLaMA-Factory made a trainer that is not its CustomSeq2SeqTrainer. Nothing was updated. Leave out `loss:`, or "
    "report the configuration."
)
"""Why a run would train without the loss."""

NO_BOUNDARIES = (
    "`packing`: the positions of a packed row of this model run on, so that nothing says where an example ends, and "
    "this loss looks at whole sequences. Set `neat_packing: true`, or `packing: false`."
)

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
        "USE_KT",
        is_on,
        "KTransformers trains with a trainer and a forward pass of its own.",
        "Unset it, or leave out `loss:`.",
    ),
    Rule(
        "PARALLELISM_CONFIG_SP_SIZE",
        above_one,
        _SEQUENCE_PARALLEL,
        "Unset it, or leave out `loss:`.",
    ),
)
"""By environment variable."""
