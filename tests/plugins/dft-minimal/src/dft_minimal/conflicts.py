"""What in a config is in the way of the loss. Loads without the host and without torch."""

from dft_plugin.config.rules import Rule, is_positive

RULES = (
    Rule(
        "label_smoothing",
        is_positive,
        "the trainer would take the labels away from the model, and train smoothed cross-entropy.",
        "Remove it, or set it to 0.",
    ),
)
