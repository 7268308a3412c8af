"""The study's alphabet as a tokenizer of transformers, which TRL's trainers want."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evidence.alphabet import END, PAD, VOCAB, decode

PADDING, ENDING = "<pad>", "<end>"


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose ids are those of `alphabet`."""
    words = {PADDING: PAD, ENDING: END, **{decode([token]): token for token in range(2, VOCAB)}}
    core = Tokenizer(models.WordLevel(words, unk_token=PADDING))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PADDING, eos_token=ENDING, padding_side="left")
