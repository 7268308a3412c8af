"""What vLLM would be asked, by a stand-in with the names of its documentation: vLLM itself never ran here."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from dft_plugin.answers.by_vllm import VLLM
from dft_plugin.answers.questions import question


class LLM:
    def __init__(self, model, seed, **options):
        self.made = {"model": model, "seed": seed, **options}
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=20))

    def generate(self, prompts, sampling_params, use_tqdm):
        self.asked = list(zip(prompts, sampling_params, strict=True))
        reasons = ["stop", "length", None]
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(text=f"w{number}", token_ids=[3] * (number + 1), finish_reason=reasons[number % 3])
                    for number in range(given.n)
                ]
            )
            for given in sampling_params
        ]


@pytest.fixture
def engine(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, lambda **named: SimpleNamespace(**named)
    monkeypatch.setitem(sys.modules, "vllm", module)
    sampling = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 16}
    return VLLM("m", lambda asked: [3] * len(asked.text), sampling, 7, {"tensor_parallel_size": 2})


def test_each_question_is_asked_once_for_all_its_answers_with_a_seed_of_its_own(engine):
    asked = [question(number, {"question": "w" * (1 + number)}, None) for number in range(3)]
    found = engine.answers(asked, 2)
    assert engine._llm.made == {"model": "m", "seed": 7, "tensor_parallel_size": 2}
    assert [prompt["prompt_token_ids"] for prompt, _ in engine._llm.asked] == [[3], [3, 3], [3, 3, 3]]
    params = [vars(given) for _, given in engine._llm.asked]
    assert all((one["n"], one["temperature"], one["top_p"], one["max_tokens"]) == (2, 1.0, 0.9, 16) for one in params)
    assert len({one["seed"] for one in params}) == 3
    assert [[(one.text, one.tokens, one.ended) for one in each] for each in found] == [
        [("w0", 1, True), ("w1", 2, False)]
    ] * 3


def test_a_question_without_room_for_an_answer_is_not_asked(engine):
    assert engine.unfit(question(0, {"question": "wwww"}, None)) is None
    assert "room for 20" in engine.unfit(question(0, {"question": "wwwww"}, None))
