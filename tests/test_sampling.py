"""What each token adds to a text, for tokenizers that split letters and for those that put spaces before words."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dft_plugin.hf.sampling import refusal, texts
from dft_plugin.plans import plan_for


def of_bytes():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def of_pieces():
    pieces = ["▁2", "▁+", "3", "▁=", "5", "<0x0A>", "<0xC3>", "<0xA4>"]
    core = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_a_letter_of_several_tokens_stands_at_the_last_of_them():
    tokenizer = of_bytes()
    said = "aä €\n"
    assert texts(tokenizer, tokenizer(said)["input_ids"]) == ["a", "", "ä", " ", "", "", "€", "\n"]


def test_pieces_keep_their_spaces():
    assert texts(of_pieces(), [0, 1, 2, 3, 4, 5, 6, 7]) == ["2", " +", "3", " =", "5", "\n", "", "ä"]


def test_bytes_that_are_no_letter_lose_nothing_after_them():
    tokenizer = of_bytes()
    half, letter = tokenizer("ä")["input_ids"][0], tokenizer("b")["input_ids"][0]
    assert "".join(texts(tokenizer, [half, letter, letter])).endswith("bb")


def test_without_a_tokenizer_there_are_numbers():
    assert texts(None, [5, 7]) == ["5 ", "7 "]


@pytest.mark.parametrize("loss", ["dft", "nll", "eaft", {"name": "dft", "always_learn": [7]}])
def test_losses_whose_weights_the_model_alone_tells(loss):
    assert refusal(plan_for(loss)) is None


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        ({"name": "prift", "reference": "copy"}, "a frozen reference"),
        ({"name": "dft", "weights": {"column": "ratio"}}, "columns of the data"),
    ],
)
def test_losses_that_need_more_are_refused(loss, why):
    assert why in refusal(plan_for(loss))
