"""Answers by vLLM, where it is installed. Written against the documentation of LLM and SamplingParams; never run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from dft_plugin.answers.judging import Answer
from dft_plugin.answers.questions import Question

MISSING = (
    "--engine vllm: the package vllm is not here. Run `pip install vllm` in an environment that fits it, or leave the "
    "option out: transformers answers then."
)


def is_here() -> bool:
    """Say whether vLLM is installed; it is not imported for that."""
    return find_spec("vllm") is not None


class VLLM:
    """A model that answers.

    Args:
        model: a folder or a name on the hub.
        tokens: makes a question into tokens.
        sampling: `temperature`, `top_p`, `max_tokens`.
        seed: of all of it.
        options: what `vllm.LLM` is given besides.
    """

    def __init__(
        self,
        model: str,
        tokens: Callable[[Question], list[int]],
        sampling: Mapping[str, Any],
        seed: int,
        options: Mapping[str, Any],
    ) -> None:
        from vllm import LLM

        self._tokens, self._sampling, self._seed = tokens, sampling, seed
        self._llm = LLM(model=model, seed=seed, **options)

    def unfit(self, asked: Question) -> str | None:
        """Say so where question and answer are longer than vLLM was told to make room for."""
        room = self._llm.llm_engine.model_config.max_model_len
        length = len(self._tokens(asked)) + self._sampling["max_tokens"]
        return None if length <= room else f"{length} tokens, and vLLM has room for {room}"

    def answers(self, asked: Sequence[Question], k: int) -> list[list[Answer]]:
        """Return k answers to each question."""
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": self._tokens(one)} for one in asked]
        # A seed for each question: one for all would draw alike for all of them.
        params = [SamplingParams(n=k, seed=self._seed + 1_000 * one.number, **self._sampling) for one in asked]
        found = self._llm.generate(prompts, sampling_params=params, use_tqdm=False)
        return [
            [Answer(one.text, len(one.token_ids), one.finish_reason != "length") for one in of_one.outputs]
            for of_one in found
        ]
