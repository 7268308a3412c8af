"""What in a verl run would keep the loss from taking effect, and what of a loss verl cannot do. No verl, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dft_plugin.config import rules
from dft_plugin.config.hosts import Conflict
from dft_plugin.config.rules import Config, Rule, is_given, is_on, look_up, other_than
from dft_plugin.config.settings import Settings
from dft_plugin.objectives import Objective
from dft_plugin.objectives.from_logp import COMPUTED, unknown
from dft_verl.resolving import is_open

PLUGINS = "VERL_USE_EXTERNAL_PLUGINS"
"""verl's switch for its entry points: `auto`, `none`, or names."""

ENTRY_POINT = "dft"
"""Our name among them."""


def find(config: Config, environ: Mapping[str, str]) -> list[Conflict]:
    """List every conflict of a run.

    Args:
        config: keys of the config, composed or not.
        environ: the environment of the run.
    """
    left = unknown_yet(config)
    known = [rule for rule in RULES if rule.key not in left]
    return rules.find(known, config) + rules.find(ENVIRONMENT_RULES, environ, "{key}={value}")


def unknown_yet(config: Config) -> dict[str, str]:
    """Return the keys that may be in the way, and refer to what only the run knows, with their values."""
    found = {rule.key: look_up(config, rule.key) for rule in RULES}
    return {key: value for key, value in found.items() if is_open(value)}


def unsupported(settings: Settings, objectives: Iterable[Objective]) -> list[str]:
    """List what of a loss verl's log p does not suffice for, or has no effect on.

    Args:
        settings: the loss.
        objectives: all that hold at some time of the run.
    """
    found = [f"`loss: {one.name}` {said}. {_OTHERS}" for one in objectives for said in _out_of_reach(one)]
    if settings.kernel != "auto":
        found.append(
            f"`loss.kernel: {settings.kernel}`: verl makes log p itself, so that no kernel of ours runs. Drop it; to "
            "keep logits from being made, set `model.use_fused_kernels=True`."
        )
    if settings.scratch_mb is not None:
        found.append("`loss.scratch_mb`: verl makes the logits, and this bounds none of them. Drop it.")
    if settings.nonfinite != "warn":
        found.append(
            f"`loss.nonfinite: {settings.nonfinite}`: verl's engine goes from the loss to the optimizer without "
            "asking us, so that its ranks cannot agree. Drop it: a step whose statistics are not finite is named."
        )
    if "top1" in settings.log:
        found.append("`loss.log: top1`: log p does not tell whether another token is likelier. Drop it.")
    if settings.weights is not None and settings.weights.column:
        found.append(
            f"`loss.weights.column: {settings.weights.column}`: verl's datasets hand over no columns of numbers. "
            "Give factors by token (`weights: {tokens: ...}`), or train in another host (`dft hosts`)."
        )
    return found


def _out_of_reach(objective: Objective) -> list[str]:
    # A reference whose whole distribution is read stands in `unknown`.
    found = [f"{said}, and verl hands over log p" for said in unknown(objective, COMPUTED)]
    if objective.reference == "columns" or objective.columns:
        names = ", ".join(f"`{name}`" for name in sorted(objective.columns))
        found.append(f"reads {names} of each token, which verl's datasets do not hand over")
    if objective.divisor != "tokens":
        by = "the sum of its weights" if objective.divisor == "weights" else "the number of tokens that it keeps"
        found.append(f"divides by {by}, and verl by all target tokens of a step")
    if objective.scope == "batch":
        found.append("weighs a token by all others of a step, and verl's step is in parts")
    return found


_OTHERS = "Take one that looks at log p alone (dft, nll, profit, chord_phi, focal), or another host (`dft hosts`)."

RULES = (
    Rule(
        "actor_rollout_ref",
        is_given,
        "this is a config of verl's reinforcement learning, which has losses of its own.",
        "`loss:` is for verl.trainer.sft_trainer and sft_trainer_ray.",
    ),
    Rule(
        "data.pad_mode",
        other_than("no_padding"),
        "verl's engines train sequences without padding only, and fail on {value}.",
        "Remove it.",
    ),
    Rule(
        "model.mtp.enable",
        is_on,
        "the extra heads for further tokens train a cross-entropy of their own beside the loss.",
        "Set `model.mtp.enable=False`, or leave out `loss`.",
    ),
    Rule(
        "engine.dynamic_context_parallel",
        is_on,
        "it shares out the batch in a way that was never looked at together with `loss`.",
        "Set it to False, or leave out `loss`.",
    ),
)
"""By key of the config."""


def _leaves_us_out(policy: str | None) -> bool:
    named = (policy or "auto").strip().lower()
    return named != "auto" and ENTRY_POINT not in [name.strip() for name in named.split(",")]


ENVIRONMENT_RULES = (
    Rule(
        PLUGINS,
        _leaves_us_out,
        "verl would not load dft-plugin, and ignore `loss`.",
        f"Unset it, or add `{ENTRY_POINT}` to its names.",
    ),
)
"""By environment variable."""
