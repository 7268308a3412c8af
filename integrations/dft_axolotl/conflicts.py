"""What in an Axolotl config is in the way of the loss, or superseded by it: one list, for `dft check` and the plugin.

Keys are Axolotl 0.19's; a value is as YAML gives it. No Axolotl, no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dft_plugin.config.hosts import Conflict

PLUGIN = "dft_axolotl.DFTPlugin"
"""What stands in `plugins:`."""

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """A setting that cannot be on together with `loss:`.

    Attributes:
        key: the key to change.
        applies: whether a config has it on.
        problem: what would happen; `{value}` is what stands after the key.
        remedy: what to change.
    """

    key: str
    applies: Callable[[Config], bool]
    problem: str
    remedy: str

    def conflict(self, config: Config) -> Conflict:
        """Return the conflict that this rule finds in a config."""
        return Conflict(self.key, self.problem.format(value=config.get(self.key)), self.remedy)


def _on(key: str) -> Callable[[Config], bool]:
    return lambda config: bool(config.get(key))


def _above_one(key: str) -> Callable[[Config], bool]:
    return lambda config: int(config.get(key) or 1) > 1


def _is(key: str, value: str) -> Callable[[Config], bool]:
    return lambda config: config.get(key) == value


def _lists(part: str) -> Callable[[Config], bool]:
    return lambda config: any(part in name for name in _plugins(config))


RULES = (
    Rule(
        "rl",
        _on("rl"),
        "`{value}` trains on preferences, rewards or features with a loss of its own.",
        "Remove `rl:` to fine-tune on target tokens, or remove `loss:`.",
    ),
    Rule(
        "reward_model",
        _on("reward_model"),
        "a reward model has no next-token likelihood.",
        "Remove it, or remove `loss:`.",
    ),
    Rule(
        "process_reward_model",
        _on("process_reward_model"),
        "a process reward model has no next-token likelihood.",
        "Remove it, or remove `loss:`.",
    ),
    Rule(
        "model_config_type",
        _is("model_config_type", "mamba"),
        "Axolotl's Mamba trainer computes cross-entropy by itself and never asks the model for a loss.",
        "Remove `loss:` for this model.",
    ),
    Rule(
        "kd_trainer",
        lambda config: _on("kd_trainer")(config) or _lists("integrations.kd.")(config),
        "the distillation trainer computes its own loss from the teacher's logits.",
        "Remove it and the KDPlugin from `plugins:`, or remove `loss:`.",
    ),
    Rule(
        "use_eaft",
        _on("use_eaft"),
        "EAFT weights each token by entropy in a loss of its own, which would replace ours.",
        "Remove it, or remove `loss:`.",
    ),
    Rule(
        "orpo_alpha",
        _on("orpo_alpha"),
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
        "context_parallel_size",
        _above_one("context_parallel_size"),
        "Axolotl's context parallelism ({value}) cuts sequences after the tokens were counted and replaces the count "
        "by an estimate, so the loss would be wrong.",
        "Set it to 1, and save memory with sample_packing, FSDP or DeepSpeed.",
    ),
    Rule(
        "sequence_parallel_degree",
        _above_one("sequence_parallel_degree"),
        "the old name of context_parallel_size ({value}) cuts sequences after the tokens were counted and replaces "
        "the count by an estimate, so the loss would be wrong.",
        "Set it to 1, and save memory with sample_packing, FSDP or DeepSpeed.",
    ),
    Rule(
        "liger_use_token_scaling",
        _on("liger_use_token_scaling"),
        "it asks Liger for a DFT of its own; only one of the two can be on.",
        "Remove it: `loss: dft` is the same loss, counted over the whole step.",
    ),
    Rule(
        "use_dft",
        _on("use_dft"),
        "it asks Axolotl for a DFT of its own; only one of the two can be on.",
        "Remove it, or remove `loss:`.",
    ),
)


def conflicts(config: Config) -> list[Conflict]:
    """List everything that would keep the loss from taking effect."""
    found = [rule.conflict(config) for rule in RULES if rule.applies(config)]
    for name in _plugins(config):
        if name != PLUGIN and difflib.SequenceMatcher(None, name.lower(), PLUGIN.lower()).ratio() > 0.7:
            found.append(
                Conflict(
                    "plugins",
                    f"`{name}` is not our plugin's name, and where a plugin cannot be imported Axolotl prints it and "
                    "trains cross-entropy.",
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
    listed = _lists("integrations.cut_cross_entropy.")(config)
    if config.get("cut_cross_entropy") or (listed and config.get("cut_cross_entropy") is not False):
        found.append("cut_cross_entropy")
    return found


def cautions(config: Config) -> list[str]:
    """List what works, but not as one would expect."""
    if not _lists("integrations.llm_compressor.")(config):
        return []
    return [
        "llm_compressor: when training ends it puts a loss function of its own on the trainer, so that an evaluation "
        "after that is not of this loss; evaluate while training (val_set_size, eval_strategy)."
    ]


def lists_plugin(config: Config) -> bool:
    """Say whether `plugins:` names ours."""
    return PLUGIN in _plugins(config)


def _plugins(config: Config) -> list[str]:
    listed = config.get("plugins") or []
    return [listed] if isinstance(listed, str) else [str(name) for name in listed]
