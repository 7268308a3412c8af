"""Tokenizers made on the spot, which split texts as those of real models do, and models that fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from support import tiny

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def bytewise(chat_template: str | None = CHATML, **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with few merges, after the manner of Qwen's base models: EOS is not what ends a turn."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("1", "1")]
    vocab = {piece: i for i, piece in enumerate([*letters, *("".join(pair) for pair in merges)])}
    core = Tokenizer(models.BPE(vocab, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(MARKS))
    core.add_tokens(["</think>"])
    made = PreTrainedTokenizerFast(tokenizer_object=core, **{"eos_token": "<|endoftext|>", **named})
    made.chat_template = chat_template
    return made


def wordwise(*words: str) -> PreTrainedTokenizerFast:
    """Whole words, and one token for all that are unknown."""
    vocab = {word: i for i, word in enumerate(["<unk>", "</s>", *(words or ("one", "two"))])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def add(tokenizer: Any, *texts: str, special: bool = False) -> list[int]:
    """Add tokens, as a user does who teaches a format; return their ids."""
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])
    return [tokenizer.convert_tokens_to_ids(text) for text in texts]


def model_for(tokenizer: Any, **changes: Any) -> LlamaForCausalLM:
    """A tiny model with a row for each token."""
    return tiny.llama(**{"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **changes})


def saved(tokenizer: Any, folder: Path, **changes: Any) -> LlamaForCausalLM:
    """A base model as it comes from a folder, its tokenizer beside it."""
    model_for(tokenizer, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)
