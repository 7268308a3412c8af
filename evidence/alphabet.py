"""Characters as tokens."""

from __future__ import annotations

from collections.abc import Iterable

PAD, END = 0, 1
_SEEN = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+=:;|>#., \n"
NEW = "!?$%&"
"""Characters that no pre-training has."""

_TOKENS = {character: number for number, character in enumerate(_SEEN + NEW, start=2)}
_CHARACTERS = {number: character for character, number in _TOKENS.items()}
VOCAB = len(_TOKENS) + 2


def encode(text: str) -> list[int]:
    """Return the tokens of a text."""
    return [_TOKENS[character] for character in text]


def decode(tokens: Iterable[int]) -> str:
    """Return the text of tokens; padding and the end are nothing."""
    return "".join(_CHARACTERS.get(token, "") for token in tokens)
