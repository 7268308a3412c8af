"""Stand-ins for what TRL's tests take from the hub: tiny models and data, under the same names in a folder.

Started in that folder, `from_pretrained` and `load_dataset` find them by their names: nothing is patched.
`python -m reliability.downstream.hub FOLDER`.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

OWNER = "trl-internal-testing"
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny-Qwen2ForCausalLM-2.5": ("Qwen2", {}),
    "tiny-Qwen3ForCausalLM": ("Qwen3", {}),
    "tiny-Qwen3MoeForCausalLM": ("Qwen3Moe", {**EXPERTS, "decoder_sparse_step": 1}),
    "tiny-GptOssForCausalLM": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "tiny-GPTNeoXForCausalLM": ("GPTNeoX", {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4}),
}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] or '' }}{{ '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] or '' }}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = [
    "the",
    "small",
    "cat",
    "runs",
    "over",
    "a",
    "green",
    "field",
    "while",
    "three",
    "old",
    "birds",
    "sing",
    "in",
    "cold",
    "rain",
    "and",
    "nobody",
    "hears",
    "them",
    "now",
]


def make(folder: Path) -> None:
    """Write all of them."""
    words = tokenizer()
    for name, (family, changes) in MODELS.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")
        sizes = {} if family == "GPTNeoX" else SIZES
        layers = {"num_hidden_layers": 2, "vocab_size": len(words)}
        model = getattr(transformers, f"{family}ForCausalLM")(config(**{**sizes, **layers, **changes}))
        model.save_pretrained(folder / OWNER / name)
        words.save_pretrained(folder / OWNER / name)
    pick = random.Random(0)
    for name, configs in data(pick).items():
        _write(folder / OWNER / name, configs)


def tokenizer() -> Any:
    """Return one with a token for each byte, those that open and close a turn, and a template that marks answers."""
    from tokenizers import pre_tokenizers

    every = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {word: number for number, word in enumerate(every)}
    made = transformers.Qwen2Tokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>", eos_token="<|im_end|>")
    made.chat_template = TEMPLATE
    return made


def data(pick: random.Random) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return rows by data set and config."""

    def say() -> str:
        return " ".join(pick.choice(WORDS) for _ in range(pick.randint(3, 9)))

    def user() -> dict[str, str]:
        return {"role": "user", "content": say()}

    def assistant() -> dict[str, str]:
        return {"role": "assistant", "content": say()}

    rows = range(17)
    zen = {
        "standard_language_modeling": [{"text": say()} for _ in rows],
        "standard_prompt_completion": [{"prompt": say(), "completion": " " + say()} for _ in rows],
        "standard_implicit_prompt_preference": [{"chosen": say(), "rejected": say()} for _ in rows],
        "conversational_language_modeling": [{"messages": [user(), assistant()]} for _ in rows],
        "conversational_prompt_completion": [{"prompt": [user()], "completion": [assistant()]} for _ in rows],
    }
    harmony = {
        "language_modeling": [{"messages": [user(), assistant()], "reasoning_effort": "low"} for _ in rows],
        "prompt_completion": [{"prompt": [user()], "completion": [assistant()]} for _ in rows],
    }
    tools = json.dumps([{"type": "function", "function": {"name": "sing", "parameters": {}}}])
    toolcall = {"default": [{"messages": [user(), assistant()], "tools": tools} for _ in rows]}
    return {"zen": zen, "harmony": harmony, "toolcall": toolcall}


def _write(folder: Path, configs: dict[str, list[dict[str, Any]]]) -> None:
    folder.mkdir(parents=True)
    described = ["---", "configs:"]
    for config, rows in configs.items():
        described += [f"- config_name: {config}", "  data_files:"]
        for split, part in (("train", rows), ("test", rows[:2])):
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
            described += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*described, "---", ""]))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
