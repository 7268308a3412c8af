"""What in an Axolotl config is in the way of the loss, or superseded by it: one list, for `dft check` and the plugin.

Keys are those of Axolotl 0.19 to 0.21; a value is as YAML gives it. No Axolotl, no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from packaging.version import Version

from dft_plugin.config import rules
from dft_plugin.config.hosts import PLATEAU_SCHEDULERS, Choice, Conflict
from dft_plugin.config.rules import Config, Rule, above_one, equals, is_given, is_on, is_positive

PLUGIN = "dft_axolotl.DFTPlugin"
"""What stands in `plugins:`; from 0.21 Axolotl takes a colon in the place of the last dot as well."""


def _lists(part: str) -> Callable[[Any], bool]:
    return lambda plugins: any(part in name for name in _names(plugins))


_DISTILS = "the distillation trainer computes its own loss from the teacher's logits."

RULES = (
    Rule(
        "rl",
        is_given,
        "`{value}` trains on preferences, rewards or features with a loss of its own.",
        "Remove `rl:` to fine-tune on target tokens, or remove `loss:`.",
    ),
    Rule(
        "reward_model",
        is_on,
        "a reward model has no next-token likelihood.",
        "Remove it, or remove `loss:`.",
    ),
    Rule(
        "process_reward_model",
        is_on,
        "a process reward model has no next-token likelihood.",
        "Remove it, or remove `loss:`.",
    ),
    Rule(
        "kd_trainer",
        is_on,
        _DISTILS,
        "Remove it, or remove `loss:`.",
    ),
    Rule(
        "plugins",
        _lists("integrations.kd."),
        _DISTILS,
        "Remove the KDPlugin, or remove `loss:`.",
    ),
    Rule(
        "use_eaft",
        is_on,
        "EAFT weights each token by entropy in a loss of its own, which would replace ours.",
        "Remove it, or remove `loss:`.",
    ),
    Rule(
        "orpo_alpha",
        is_given,
        "ORPO computes its own loss from pairs of answers.",
        "Remove it, or remove `loss:`.",
    ),
    Rule(
        "plugins",
        _lists("integrations.diffusion."),
        "the diffusion trainer predicts masked tokens with a loss of its own.",
        "Remove the DiffusionPlugin, or remove `loss:`.",
    ),
    Rule(
        "plugins",
        _lists("integrations.hatchery."),
        "Hatchery trains on a remote service, where our loss is not.",
        "Remove the HatcheryPlugin, or remove `loss:`.",
    ),
    Rule(
        "diffusion_lm",
        is_given,
        "the trainer of diffusion models predicts masked tokens with a loss of its own.",
        "Remove it, or remove `loss:`.",
    ),
    Rule(
        "diffusion_decision",
        is_given,
        "its trainer scores whole answers of a diffusion model with a loss of its own.",
        "Remove it, or remove `loss:`.",
    ),
    Rule(
        "adapter",
        equals("mixlora"),
        "MixLoRA's trainer adds its routers' loss to each micro-batch, however few of the step's tokens that has.",
        "Choose another adapter, or remove `loss:`.",
    ),
    Rule(
        "liger_use_token_scaling",
        is_on,
        "it asks Liger for a DFT of its own; only one of the two can be on.",
        "Remove it: `loss: dft` is the same loss, counted over the whole step.",
    ),
    Rule(
        "use_dft",
        is_on,
        "it asks Axolotl for a DFT of its own; only one of the two can be on.",
        "Remove it, or remove `loss:`.",
    ),
)
"""Of every version; a key that one of them does not know is in no config of its users."""

_ONE = "Set it to 1, and save memory with sample_packing, FSDP or DeepSpeed."


def _context_parallel(why: str, beside: Callable[[Config], bool] = bool) -> tuple[Rule, ...]:
    named = {
        "context_parallel_size": "Axolotl's context parallelism ({value})",
        "sequence_parallel_degree": "the old name of context_parallel_size ({value})",
        "context_parallel.size": "Axolotl's context parallelism ({value})",
    }
    return tuple(Rule(key, above_one, f"{what} {why}", _ONE, beside) for key, what in named.items())


UP_TO_0_19 = (
    Rule(
        "model_config_type",
        equals("mamba"),
        "the Mamba trainer of Axolotl 0.19 computes cross-entropy by itself and never asks the model for a loss.",
        "Install Axolotl 0.20 or newer, or remove `loss:` for this model.",
    ),
    *_context_parallel(
        "cuts sequences after the tokens were counted and, in 0.19, replaces the count by an estimate, so the loss "
        "would be wrong."
    ),
)

FROM_0_20 = _context_parallel(
    "is DeepSpeed's with `deepspeed:`, which is not told how many tokens a step has, so the loss would be wrong.",
    lambda config: is_given(config.get("deepspeed")),
)


def rules_of(version: str | None) -> tuple[Rule, ...]:
    """Return what a version of Axolotl is refused for; None, no Axolotl at all, is read as the newest."""
    old = version is not None and Version(version) < Version("0.20.dev0")
    return (*RULES, *(UP_TO_0_19 if old else FROM_0_20))


COLUMN_RULES = (
    Rule(
        "streaming",
        is_on,
        "rows that are streamed are tokenised and packed without them.",
        "Set `streaming: false`.",
    ),
    Rule(
        "pretraining_dataset",
        is_given,
        "rows that are streamed are tokenised and packed without them.",
        "Name the data under `datasets:`.",
    ),
    Rule(
        "processor_type",
        is_given,
        "a processor makes tokens and labels batch by batch, without them.",
        "Remove `processor_type:` where the data is text, or leave them out of `loss:`.",
    ),
    Rule(
        "skip_prepare_dataset",
        is_on,
        "rows that are not prepared have no numbers per token.",
        "Set it to false.",
    ),
)
"""Where the loss reads columns of the data."""


MERGES = Rule(
    "relora",
    is_on,
    "ReLoRA merges the adapters into the base model every `jagged_restart_steps`, and `loss:` compares the model with "
    "that, its adapters off.",
    "Write `reference: copy` (a second copy of the weights) or `reference: PATH` of a model, or remove it.",
)

_END_TO_END = "texts are laid end to end without a word of where one ends, and `loss:` looks at whole sequences."

BOUNDARY_RULES = (
    Rule(
        "pretraining_sample_concatenation",
        is_on,
        _END_TO_END,
        "Set it to false, or use `sample_packing`.",
        beside=lambda config: is_given(config.get("pretraining_dataset")) and not is_on(config.get("sample_packing")),
    ),
    Rule(
        "pretrain_multipack_attn",
        equals(False),
        _END_TO_END,
        "Set it to true.",
        beside=lambda config: is_given(config.get("pretraining_dataset")) and is_on(config.get("sample_packing")),
    ),
)
"""Where the loss looks at whole sequences."""


def without_boundaries(config: Config) -> list[Conflict]:
    """List what keeps the batches from saying where a sequence ends."""
    return rules.find(BOUNDARY_RULES, config)


def moving_base(config: Config) -> list[Conflict]:
    """List what changes the base model of adapters during a run."""
    return rules.find([MERGES], config)


def losing_columns(config: Config) -> list[Conflict]:
    """List what drops columns of the data."""
    return rules.find(COLUMN_RULES, config)


def find(config: Config, version: str | None = None) -> list[Conflict]:
    """List everything that would keep the loss from taking effect in a version of Axolotl."""
    found = rules.find(rules_of(version), config)
    for name in _names(config.get("plugins")):
        if name != PLUGIN and difflib.SequenceMatcher(None, name.lower(), PLUGIN.lower()).ratio() > 0.7:
            found.append(
                Conflict(
                    "plugins",
                    f"`{name}` is not our plugin's name, and where a plugin cannot be imported Axolotl up to 0.20 "
                    "prints it and trains cross-entropy.",
                    f"Write `{PLUGIN}`.",
                )
            )
    return found


def superseded(config: Config) -> list[str]:
    """List, in words, which of Axolotl's settings have no effect on the loss while ours is on."""
    keys = (
        "chunked_cross_entropy",
        "flash_attn_cross_entropy",
        "liger_cross_entropy",
        "liger_fused_linear_cross_entropy",
    )
    found = [key for key in keys if config.get(key)]
    # It is on as soon as its plugin is listed.
    listed = _lists("integrations.cut_cross_entropy.")(config.get("plugins"))
    if config.get("cut_cross_entropy") or (listed and config.get("cut_cross_entropy") is not False):
        found.append("cut_cross_entropy")
    return found


def cautions(config: Config) -> list[str]:
    """List what works, but not as one would expect."""
    if not _lists("integrations.llm_compressor.")(config.get("plugins")):
        return []
    return [
        "llm_compressor: when training ends it puts a loss function of its own on the trainer, so that an evaluation "
        "after that is not of this loss; evaluate while training (val_set_size, eval_strategy)."
    ]


def choice_of_best(config: Config) -> Choice | None:
    """Say by what Axolotl would choose the best checkpoint, stop early or lower the rate; None: by nothing.

    It loads the best checkpoint where that is asked for, there is something to evaluate, and it saves at steps that it
    evaluates; else it drops the key. It passes on `greater_is_better: true` only.
    """
    stops = is_given(config.get("early_stopping_patience"))
    evaluates = is_positive(config.get("val_set_size")) or is_given(config.get("test_datasets"))
    every = _interval(config, "eval_steps", "evals_per_epoch")
    saved = _interval(config, "save_steps", "saves_per_epoch")
    in_step = bool(every) and bool(saved) and saved % every == 0
    loads = is_on(config.get("load_best_model_at_end")) and evaluates and in_step
    follows = config.get("lr_scheduler") in PLATEAU_SCHEDULERS
    metric = config.get("metric_for_best_model")
    return Choice(metric, config.get("greater_is_better")) if stops or loads or follows or metric else None


def _interval(config: Config, steps: str, per_epoch: str) -> float:
    """Return every how many steps, or at which share of all steps, something happens; 0: never."""
    if is_positive(config.get(steps)):
        return float(config[steps])
    if not is_positive(config.get(per_epoch)):
        return 0.0
    return 1.0 / (float(config[per_epoch]) * float(config.get("num_epochs") or 1))


def lists_plugin(config: Config) -> bool:
    """Say whether `plugins:` names ours."""
    return PLUGIN in _names(config.get("plugins"))


def lists_foreign_plugin(config: Config) -> bool:
    """Say whether `plugins:` names one that is neither Axolotl's nor ours."""
    return any(not name.startswith(("axolotl.", "dft_axolotl")) for name in _names(config.get("plugins")))


def finds_plugin(version: str | None) -> bool:
    """Say whether an Axolotl finds our plugin by itself."""
    return version is not None and Version(version) >= Version("0.21.dev0")


def dotted(name: str) -> str:
    """Return the name of a plugin as older versions want it: `module.Class`, not `module:Class`."""
    return name.replace(":", ".")


def _names(plugins: Any) -> list[str]:
    listed = plugins or []
    return [dotted(str(name)) for name in ([listed] if isinstance(listed, str) else listed)]
