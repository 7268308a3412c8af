"""What the paper trained, as far as it says so, and what came of it.

Sources: the text of arXiv 2508.05629 (version 3), and the released code, github.com/yongliang-wu/DFT (README,
`numina_cot.py`, `sft_trainer.yaml`, `math_evaluation/`). What neither says is in `Setting.assumed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

QWEN, QWEN_MATH, LLAMA, DEEPSEEK, QWEN_VL = "qwen", "qwen-math", "llama", "deepseek", "qwen-vl"


@dataclass(frozen=True)
class Model:
    """A model that the paper trains.

    Attributes:
        name: what it is called here.
        title: what the paper calls it.
        path: on the hub.
        chat: how a conversation is written for it.
        layer: the class of its layers in transformers.
        learning_rate: where it is not that of the setting.
    """

    name: str
    title: str
    path: str
    chat: str
    layer: str
    learning_rate: float | None = None


QWEN_LAYER, LLAMA_LAYER = "Qwen2DecoderLayer", "LlamaDecoderLayer"

MATH_MODELS = (
    Model("llama-3.2-3b", "LLaMA-3.2-3B", "meta-llama/Llama-3.2-3B", LLAMA, LLAMA_LAYER),
    Model("llama-3.1-8b", "LLaMA-3.1-8B", "meta-llama/Meta-Llama-3.1-8B", LLAMA, LLAMA_LAYER, learning_rate=2e-5),
    Model("deepseekmath-7b", "DeepSeekMath-7B", "deepseek-ai/deepseek-math-7b-base", DEEPSEEK, LLAMA_LAYER),
    Model("qwen2.5-math-1.5b", "Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-1.5B", QWEN_MATH, QWEN_LAYER),
    Model("qwen2.5-math-7b", "Qwen2.5-Math-7B", "Qwen/Qwen2.5-Math-7B", QWEN_MATH, QWEN_LAYER),
)
CODE_MODELS = (
    Model("qwen2.5-3b", "Qwen2.5-3B", "Qwen/Qwen2.5-3B", QWEN, QWEN_LAYER),
    Model("qwen2.5-coder-3b", "Qwen2.5-Coder-3B", "Qwen/Qwen2.5-Coder-3B", QWEN, QWEN_LAYER),
    Model("qwen2.5-coder-7b", "Qwen2.5-Coder-7B", "Qwen/Qwen2.5-Coder-7B", QWEN, QWEN_LAYER),
)
SEEING_MODELS = (
    Model("qwen2.5-vl-3b", "Qwen2.5-VL-3B", "Qwen/Qwen2.5-VL-3B-Instruct", QWEN_VL, "Qwen2_5_VLDecoderLayer"),
)


@dataclass(frozen=True)
class Setting:
    """One of the paper's settings: data and numbers of a training.

    Attributes:
        name: what it is called here.
        models: those that the paper trains in it.
        dataset: on the hub.
        rows: how many of it; None takes all.
        batch: sequences of an optimizer step, over all GPUs.
        micro: sequences of a pass on one GPU, at most.
        warmup: a share of all steps.
        assumed: what the sources do not say, and is chosen here.
    """

    name: str
    models: Sequence[Model]
    dataset: str
    rows: int | None
    batch: int
    warmup: float
    assumed: Sequence[str]
    micro: int = 4
    learning_rate: float = 5e-5
    length: int = 2048
    epochs: int = 1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    lora: Mapping[str, int] = field(default_factory=lambda: {"rank": 8, "alpha": 16})


MATH = Setting(
    "math",
    MATH_MODELS,
    "AI-MO/NuminaMath-CoT",
    rows=100_000,
    batch=256,
    warmup=0.1,
    assumed=(
        "for LoRA, that all linear layers but the head get adapters",
        "how chats are written for LLaMA and DeepSeekMath",
    ),
)
CODE = Setting(
    "code",
    CODE_MODELS,
    "openbmb/UltraFeedback",
    rows=10_000,
    batch=16,
    warmup=0.05,
    assumed=(
        "which 10,000 prompts (here: at random), and by which score an answer is the best (here: `overall_score`)",
        "schedule, length, betas, weight decay and clipping: those of the mathematics",
    ),
)
MULTIMODAL = Setting(
    "multimodal",
    SEEING_MODELS,
    "yangjie-cv/WeThink_Multimodal_Reasoning_120K",
    rows=None,
    batch=256,
    warmup=0.1,
    assumed=(
        "batch, schedule, warm-up, length, betas, weight decay and clipping: those of the mathematics",
        "that the half that sees is frozen, LLaMA-Factory's default; that the model is the instructed one",
    ),
)
SETTINGS = {setting.name: setting for setting in (MATH, CODE, MULTIMODAL)}

MICRO_BATCHES = 8
"""Of each step of the released command: 256 sequences, 8 GPUs, 4 sequences a pass."""

FAULTS = {
    "first_100k": (
        "the data are the first 100,000 rows, not 100,000 at random (its `numina_cot.py`); a switch of `data`"
    ),
    "gradient_not_divided": (
        "gradients of the 8 micro-batches of a step are added up and not divided by 8, and the sum is clipped at 1.0: "
        "as clipping their mean at 1/8 (AdamW takes out the factor that is left)"
    ),
    "bf16_weights": (
        "AdamW works on weights in bfloat16, where small steps are lost (its command has `model_dtype=bf16`)"
    ),
}
"""What the released code does otherwise than the paper says, by the name of the switch that does it here."""

NO_SWITCH = (
    "each micro-batch is divided by its own tokens; the hosts divide a step by all of its tokens",
    "an answer of Qwen's ends with the tokenizer's end-of-sequence token; the hosts end it as the chat template does",
    "sequence parallelism trains without the weight, and then stops with an error; its command does not use it",
)
"""What stays otherwise."""

BENCHMARKS = ("Math500", "Minerva Math", "OlympiadBench", "AIME24", "AMC23")

MATH_RESULTS: dict[str, dict[str, tuple[float, ...]]] = {
    "llama-3.2-3b": {
        "base": (1.63, 1.36, 1.01, 0.41, 1.56, 1.19),
        "sft": (8.65, 2.38, 2.06, 0.00, 3.13, 3.24),
        "dft": (12.79, 2.84, 2.90, 0.83, 3.91, 4.65),
    },
    "llama-3.1-8b": {
        "base": (1.86, 0.98, 0.94, 0.21, 1.01, 1.00),
        "sft": (16.85, 5.78, 3.88, 0.00, 5.16, 6.33),
        "dft": (27.44, 8.26, 6.94, 0.41, 12.03, 11.02),
    },
    "deepseekmath-7b": {
        "base": (6.15, 2.15, 1.74, 0.21, 2.97, 2.64),
        "sft": (26.83, 7.26, 6.33, 0.41, 8.28, 9.82),
        "dft": (41.46, 16.79, 15.00, 1.24, 16.25, 18.15),
    },
    "qwen2.5-math-1.5b": {
        "base": (31.66, 8.51, 15.88, 4.16, 19.38, 15.92),
        "sft": (43.76, 13.04, 12.63, 1.87, 18.75, 18.01),
        "dft": (64.89, 20.94, 27.08, 6.87, 38.13, 31.58),
    },
    "qwen2.5-math-7b": {
        "base": (40.12, 14.39, 17.12, 6.68, 27.96, 21.25),
        "sft": (53.96, 16.66, 18.93, 2.48, 26.09, 23.62),
        "dft": (68.20, 30.16, 33.83, 8.56, 45.00, 37.15),
    },
}
"""Table 1: per cent, one number for each of `BENCHMARKS`, then their mean."""

LORA_RESULTS = {
    "qwen2.5-math-1.5b": {"sft": 16.87, "dft": 32.90},
    "llama-3.2-3b": {"sft": 2.56, "dft": 4.63},
}
"""Table 9: the mean of the five, with LoRA."""

CODE_BENCHMARKS = ("HumanEval", "HumanEval+", "MultiPL-E")
CODE_RESULTS = {
    "qwen2.5-3b": {"base": (43.3, 36.0, 40.05), "sft": (41.5, 34.8, 39.10), "dft": (45.7, 39.0, 41.84)},
    "qwen2.5-coder-3b": {"base": (52.4, 42.7, 48.39), "sft": (51.8, 43.9, 50.52), "dft": (56.7, 50.0, 53.16)},
    "qwen2.5-coder-7b": {"base": (62.2, 53.0, 57.76), "sft": (54.9, 48.8, 57.62), "dft": (67.7, 59.8, 62.30)},
}
"""Table 3."""

SEEING_BENCHMARKS = ("MathVerse", "MathVision", "WeMath")
SEEING_RESULTS = {
    "qwen2.5-vl-3b": {"base": (33.83, 21.25, 4.10), "sft": (35.66, 21.02, 23.33), "dft": (37.54, 22.30, 23.71)},
}
"""Table 4."""


def find_model(name: str) -> tuple[Model, Setting]:
    """Return a model and the setting that it belongs to.

    Raises:
        KeyError: no setting has it.
    """
    for setting in SETTINGS.values():
        for model in setting.models:
            if model.name == name:
                return model, setting
    raise KeyError(name)


def names() -> list[str]:
    """Names of all models."""
    return [model.name for setting in SETTINGS.values() for model in setting.models]
