"""What in a `trl sft` config is in the way of the loss, or superseded by it. No TRL, no torch."""

from __future__ import annotations

from dft_plugin.config.rules import Config, Rule, is_on, is_positive

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
)


def superseded(config: Config, loss: str) -> list[str]:
    """List, in words, which of TRL's settings have no effect while `loss` is on."""
    if "loss_type" in config:
        return [f"`loss: {loss}` wins over `loss_type: {config['loss_type']}`"]
    return ["TRL's fused LM head (loss_type: nll)"]
