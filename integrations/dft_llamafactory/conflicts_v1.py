"""What in a run of LLaMA-Factory's v1 trainer (USE_V1=1) would keep the loss from taking effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.version import Version

from dft_llamafactory.conflicts import STAGE
from dft_plugin.config import rules
from dft_plugin.config.files import parse_yaml
from dft_plugin.config.hosts import Conflict
from dft_plugin.config.rules import Config, Rule, above_one, equals, is_given, other_than
from dft_plugin.errors import SettingsError


def find(config: Config, version: str | None) -> list[Conflict]:
    """List every conflict.

    Args:
        config: keys of the YAML.
        version: of LLaMA-Factory; None if it is not installed.
    """
    found = rules.find(V1_RULES, config)
    if version is not None and Version(version) < Version("0.9.5"):
        found.append(
            Conflict(
                "USE_V1",
                f"the v1 trainer of LLaMA-Factory {version} is another one, which was never run with ours.",
                "Run: pip install 'llamafactory>=0.9.5,<0.9.6'. Or unset it.",
            )
        )
    return found


COLUMNS = Conflict(
    "USE_V1",
    "LLaMA-Factory's v1 trainer builds its batches in a way of its own, which drops them.",
    "Unset USE_V1 and write the config for the usual trainer, or leave them out of `loss:`.",
)

BEFOREHAND = Conflict("USE_V1", "this command knows LLaMA-Factory's trainer of before v1 alone.", "Leave it out.")


def nonfinite(how: str) -> str:
    """Say why the v1 trainer takes no `nonfinite` but `warn`."""
    return (
        f"`loss.nonfinite: {how}` is agreed over ranks before the optimizer steps, for which LLaMA-Factory's v1 "
        "trainer (USE_V1) has no place. Drop it: a loss that is not finite is named when the log is written."
    )


def uses_v1(environ: Mapping[str, str]) -> bool:
    """Say whether `llamafactory-cli` would start the v1 trainer; it reads this switch by fewer words."""
    return environ.get("USE_V1", "0").lower() in ("true", "1", "y")


def _splits_context(value: Any) -> bool:
    try:
        # v1 takes a plugin's configuration as JSON text, too.
        config = parse_yaml(value, "dist_config") if isinstance(value, str) else value
    except SettingsError:
        return False
    return isinstance(config, Mapping) and above_one(config.get("cp_size"))


V1_RULES = (
    Rule(
        "model_name_or_path",
        is_given,
        "LLaMA-Factory's v1 trainer, which USE_V1 starts, does not read it.",
        "Unset USE_V1, or write `model` and `train_dataset` for v1.",
    ),
    STAGE,
    Rule(
        "dist_config",
        _splits_context,
        "with cp_size above 1, v1 computes cross-entropy in a function of its own.",
        "Set its `cp_size` to 1, or leave out `loss:`.",
    ),
    Rule(
        "model_class",
        other_than("llm"),
        "a model of the class {value} gives its tokens no probabilities.",
        "Set `model_class: llm`, or leave out `loss:`.",
    ),
    Rule(
        "batching_strategy",
        equals("dynamic_padding_free"),
        "without `flash_attn: flash_attention_2`, the rows that {value} puts behind one another attend to each other, "
        "and tokens get the weights of another text.",
        "Set `flash_attn: flash_attention_2`, or `batching_strategy: dynamic_batching`.",
        beside=lambda config: config.get("flash_attn") != "flash_attention_2",
    ),
)
"""By key of a YAML for USE_V1=1."""
