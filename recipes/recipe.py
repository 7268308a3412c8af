"""A recipe: one model in one host, with every number that follows from the paper. Hosts write it as their YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from recipes.paper import DEEPSEEK, FAULTS, LLAMA, MATH, MICRO_BATCHES, Model, Setting, find_model, names

TEMPLATES = Path(__file__).parent / "templates"
REASON = r"Please reason step by step, and put your final answer within \boxed{}."
"""What the chat template of Qwen2.5-Math tells the model where a chat has no system message."""


class RecipeError(ValueError):
    """A recipe that cannot be written: what was given, what there is, what to type."""


@dataclass(frozen=True)
class Recipe:
    """What is trained.

    Attributes:
        model: one of the paper's.
        setting: the one that it belongs to.
        lora: train adapters; else all weights.
        loss: what stands after `loss:`.
        faults: names in `paper.FAULTS`.
        gpus: of one machine.
        seed: of the run.
        data: the folder that `python -m recipes data` has written.
        path: a model on disk, in place of the hub's.
        template_copy: where the file of `template` lies for a host that reads it; else in this folder.
    """

    model: Model
    setting: Setting
    lora: bool = False
    loss: str = "dft"
    faults: frozenset[str] = field(default_factory=frozenset)
    gpus: int = 8
    seed: int = 1
    data: str = ""
    path: str = ""
    template_copy: str = ""

    @property
    def micro(self) -> int:
        """Sequences of a pass on one GPU."""
        return min(self.setting.micro, max(self.setting.batch // self.gpus, 1))

    @property
    def accumulation(self) -> int:
        """Passes of a step."""
        return self.setting.batch // (self.micro * self.gpus)

    @property
    def learning_rate(self) -> float:
        """The model's own, where the paper gives one."""
        return self.model.learning_rate or self.setting.learning_rate

    @property
    def clip(self) -> float:
        """The norm at which a gradient is clipped."""
        return self.setting.clip / (MICRO_BATCHES if "gradient_not_divided" in self.faults else 1)

    @property
    def bf16_weights(self) -> bool:
        """Whether AdamW works on weights in bfloat16."""
        return "bf16_weights" in self.faults

    @property
    def sharded(self) -> bool:
        """Whether weights are spread over the GPUs: 7B in float32, and AdamW's states, are more than one holds."""
        return self.gpus > 1 and not self.lora

    @property
    def model_path(self) -> str:
        """Where the model is read from."""
        return self.path or self.model.path

    @property
    def folder(self) -> str:
        """Where the data lie."""
        return self.data or f"data/{self.setting.name}"

    @property
    def name(self) -> str:
        """What a file of it is called, without its ending."""
        words = [self.model.name, self.loss, *(["lora"] if self.lora else []), *sorted(self.faults)]
        return "-".join(word.replace("_", "-") for word in words)

    @property
    def out(self) -> str:
        """Where the trained model goes."""
        return f"out/{self.name}"

    @property
    def template(self) -> Path | None:
        """How a chat is written, for models whose tokenizer does not say it; None leaves it to the tokenizer."""
        return TEMPLATES / f"{self.model.chat}.jinja" if self.model.chat in (LLAMA, DEEPSEEK) else None

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        kind = (
            f"LoRA (rank {self.setting.lora['rank']}, alpha {self.setting.lora['alpha']})"
            if self.lora
            else "all weights"
        )
        numbers = f"{self.setting.batch} sequences a step, {self.gpus} x {self.micro} x {self.accumulation}"
        return f"{self.model.title}, {kind}, {numbers}; {self.setting.epochs} epoch of {self.setting.dataset}."


def make(
    model: str,
    *,
    lora: bool = False,
    loss: str = "dft",
    faults: tuple[str, ...] = (),
    gpus: int = 8,
    seed: int = 1,
    data: str = "",
    path: str = "",
) -> Recipe:
    """Return the recipe of a model, looked at before anything is written.

    Raises:
        RecipeError: no such model or fault; GPUs that do not divide the batch.
    """
    try:
        found, setting = find_model(model)
    except KeyError:
        raise RecipeError(f"no model `{model}`; there are {', '.join(names())}") from None
    for fault in faults:
        if fault not in FAULTS:
            raise RecipeError(f"no fault `{fault}`; there are {', '.join(FAULTS)}")
        if fault == "first_100k":
            raise RecipeError("`first_100k` is a fault of the data: python -m recipes data HOST --fault first_100k")
        if setting is not MATH:
            raise RecipeError(
                f"`{fault}` is known of the released code for mathematics, and {found.title} is of `{setting.name}`"
            )
    if lora and "bf16_weights" in faults:
        raise RecipeError(
            "`bf16_weights` with LoRA: adapters are float32 in every host, and the rest is frozen. Leave one out"
        )
    recipe = Recipe(found, setting, lora, loss, frozenset(faults), gpus, seed, data, path)
    if recipe.micro * recipe.accumulation * gpus != setting.batch:
        raise RecipeError(f"{gpus} GPUs do not make steps of {setting.batch} sequences. Take a number that divides it")
    return recipe
