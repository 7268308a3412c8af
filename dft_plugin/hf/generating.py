"""Answers of a model by transformers' `generate`. Shapes: B answers, T tokens."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dft_plugin.answers.judging import Answer
from dft_plugin.answers.questions import Question
from dft_plugin.errors import SettingsError


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        temperature: 0 takes the likeliest tokens.
        top_p: nucleus; 1: all tokens.
        longest: tokens of an answer, at most.
        seed: of all of it.
        batch: answers that are generated together.
    """

    temperature: float
    top_p: float
    longest: int
    seed: int
    batch: int


@dataclass(frozen=True)
class Weights:
    """Which model.

    Attributes:
        model: a folder or a name on the hub.
        adapter: the folder of an adapter on it; None: none.
        dtype: of the weights, as in torch, or `auto`.
        options: what `from_pretrained` is given besides.
    """

    model: str
    adapter: Path | None
    dtype: str
    options: Mapping[str, Any]


class Prompts:
    """Questions as tokens: by the chat template of the tokenizer, or as they are.

    Args:
        tokenizer: of the model.
        plain: whether a template is left out.
    """

    def __init__(self, tokenizer: Any, plain: bool) -> None:
        self.tokenizer, self.plain = tokenizer, plain or tokenizer.chat_template is None

    def tokens(self, asked: Question) -> list[int]:
        """Return the tokens of a question, up to where the answer begins."""
        if self.plain:
            ids: list[int] = self.tokenizer(asked.text)["input_ids"]
            # A tokenizer that ends texts would have the model answer behind an end.
            return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids
        text = self.tokenizer.apply_chat_template(list(asked.messages), add_generation_prompt=True, tokenize=False)
        made: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return made


def load_tokenizer(weights: Weights) -> Any:
    """Return the tokenizer of a model, or of the adapter on it, which may have a template of its own.

    Raises:
        SettingsError: there is none.
    """
    own = weights.adapter is not None and (weights.adapter / "tokenizer_config.json").exists()
    name = str(weights.adapter) if own else weights.model
    try:
        return AutoTokenizer.from_pretrained(name, **weights.options)
    except (OSError, ValueError) as error:
        raise SettingsError([f"{name} has no tokenizer that could be read: {_short(error)}"]) from error


class Generating:
    """A model that answers.

    Args:
        weights: which model.
        sampling: how.
        prompts: questions as tokens.

    Raises:
        SettingsError: the model cannot be loaded.
    """

    def __init__(self, weights: Weights, sampling: Sampling, prompts: Prompts) -> None:
        self._sampling, self._prompts = sampling, prompts
        self._model = _load(weights)
        self._ends = _ends(self._model, prompts.tokenizer)
        # Whole, so that nothing of the model's own (a top_k, a penalty) changes what is asked for.
        warm = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        self._model.generation_config = GenerationConfig(
            do_sample=sampling.temperature > 0,
            max_new_tokens=sampling.longest,
            eos_token_id=sorted(self._ends),
            pad_token_id=self._padding(),
            **(warm if sampling.temperature > 0 else {}),
        )

    def unfit(self, asked: Question) -> str | None:
        """Say so where question and answer are longer than the model's context."""
        room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        length = len(self._prompts.tokens(asked)) + self._sampling.longest
        return None if room is None or length <= room else f"{length} tokens, and the model has room for {room}"

    def answers(self, asked: Sequence[Question], k: int) -> list[list[Answer]]:
        """Return k answers to each question.

        Raises:
            SettingsError: the device has no memory for so many at once.
        """
        prompts = [self._prompts.tokens(one) for one in asked for _ in range(k)]
        # Of these questions, whatever was asked before: a run that goes on samples what it would have.
        torch.manual_seed(_seed(self._sampling.seed, [one.number for one in asked]))
        found: list[Answer] = []
        for begin in range(0, len(prompts), self._sampling.batch):
            found += self._generated(prompts[begin : begin + self._sampling.batch])
        return [found[at : at + k] for at in range(0, len(found), k)]

    @torch.inference_mode()
    def _generated(self, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        length, padding = max(map(len, prompts)), self._padding()
        device = self._model.device
        ids_BT = torch.tensor([[padding] * (length - len(one)) + list(one) for one in prompts], device=device)
        mask_BT = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in prompts], device=device)
        try:
            output_BT = self._model.generate(input_ids=ids_BT, attention_mask=mask_BT)
        except torch.OutOfMemoryError as error:
            said = f"no memory for {len(prompts)} answers at once on {device}. Go on with a smaller --batch-size"
            raise SettingsError(
                [f"{said}; a new --out, since batches are sampled with seeds of their own."]
            ) from error
        return [self._answer(tokens) for tokens in output_BT[:, length:].tolist()]

    def _answer(self, tokens: list[int]) -> Answer:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        said = tokens if end is None else tokens[:end]
        text: str = self._prompts.tokenizer.decode(said, skip_special_tokens=True)
        return Answer(text, len(said) + (end is not None), end is not None)

    def _padding(self) -> int:
        own = self._prompts.tokenizer.pad_token_id
        return int(own if own is not None else min(self._ends))


def _load(weights: Weights) -> Any:
    given = weights.dtype if weights.dtype == "auto" else getattr(torch, weights.dtype)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(weights.model, dtype=given, **weights.options)
        if weights.adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(weights.adapter)).merge_and_unload()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise SettingsError([f"{weights.adapter or weights.model} cannot be loaded: {_short(error)}"]) from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.to(device or "cpu").eval()


def default_dtype() -> str:
    """Return in which precision weights are loaded where nobody says it: as they are saved; float32 on a CPU."""
    return "auto" if torch.accelerator.is_available() else "float32"


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end an answer: the model's own, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    every = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    if not every:
        raise SettingsError(
            [f"{model.config._name_or_path}: neither model nor tokenizer names a token that ends answers."]
        )
    return every


def _seed(seed: int, numbers: Sequence[int]) -> int:
    """Return a seed of its own for a batch."""
    text = f"{seed} {','.join(map(str, numbers))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _short(error: Exception) -> str:
    """Return the first line of what a library says, which may be a page."""
    return str(error).strip().split(os.linesep, 1)[0]
