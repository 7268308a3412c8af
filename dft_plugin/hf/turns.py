"""The token that ends an assistant's turn, found by rendering a made-up conversation with the chat template."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

_QUESTION = "dftquestion"
_ANSWERS = ("dftanswerone", "dftanswertwo")


@dataclass(frozen=True)
class TurnEnds:
    """Which tokens follow the content of an assistant's messages.

    Attributes:
        ids: of what ends a turn; none where there is no template, or nothing follows.
        blank: white space that does, and that stands inside answers as well.
        problem: why nobody knows what ends a turn, or None.
    """

    ids: frozenset[int] = frozenset()
    blank: frozenset[int] = frozenset()
    problem: str | None = None


def turn_ends(processor: Any, tokenizer: Any) -> TurnEnds:
    """Find what ends a turn.

    Between two messages and at the end another token may stand (`<|end|>` and `<|return|>`). One that is no plain text
    goes before all others; where there is none, what stands there has to be one token.

    Args:
        processor: a tokenizer, or a processor around one, either of which may have a chat template.
        tokenizer: the tokenizer.
    """
    holder = next((one for one in (processor, tokenizer) if getattr(one, "chat_template", None)), None)
    if holder is None:
        return TurnEnds()
    turns = _turns(holder)
    if isinstance(turns, Exception):
        return TurnEnds(problem=f"the chat template cannot be rendered ({type(turns).__name__}: {turns})")
    known = marked(tokenizer)
    if tokenizer.bos_token != tokenizer.eos_token:
        # Some templates begin each message with it.
        known.pop(tokenizer.bos_token, None)
    first = _without_beginnings(known, turns, [_first_of(known, turn.rest) for turn in turns])
    if not any(first):
        first = [_any_of(known, turn.ending) for turn in turns]
    found = frozenset(known[token] for token in first if token)
    if found:
        return TurnEnds(found)
    try:
        return _plain(tokenizer, turns)
    except Exception as error:  # A tokenizer may be code of its own.
        return TurnEnds(problem=f"the tokenizer fails on the chat template's text ({type(error).__name__}: {error})")


def marked(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that are no plain text, with their ids."""
    found = {str(token): number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    found |= {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    return {token: number for token, number in found.items() if token}


@dataclass(frozen=True)
class _Turn:
    """An assistant's turn as a template renders it.

    Attributes:
        asked: what stands between the user's content before and this one's.
        before: all text up to the end of the content.
        rest: what follows it, up to the user's next message.
        ending: that without what begins each of the user's messages.
    """

    asked: str
    before: str
    rest: str
    ending: str


def _turns(holder: Any) -> list[_Turn] | Exception:
    """Render questions and their answers.

    Contents are texts, or lists of parts in templates that want those; some templates take one question only.
    """
    problem: Exception | None = None
    for answers in (_ANSWERS, _ANSWERS[:1]):
        for content in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
            messages = []
            for answer in answers:
                messages.append({"role": "user", "content": content(_QUESTION)})
                messages.append({"role": "assistant", "content": content(answer)})
            try:
                text = holder.apply_chat_template(messages, tokenize=False)
            except Exception as error:  # A template is somebody's program, and may fail in any way.
                problem = problem or error
                continue
            if isinstance(text, str) and all(answer in text for answer in answers):
                return _split(text, answers)
    return problem or ValueError("it leaves the assistant's content out")


def _split(text: str, answers: tuple[str, ...]) -> list[_Turn]:
    begin = text.partition(_QUESTION)[0]
    last = text.rpartition(answers[-1])[2]
    turns = []
    for answer in answers:
        rest = text.rpartition(answer)[2].partition(_QUESTION)[0]
        of_next = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(rest[::-1], begin[::-1], strict=False))))
        ending = last if last and rest.startswith(last) else rest[: len(rest) - of_next]
        asked = text.rpartition(answer)[0].rpartition(_QUESTION)[2]
        turns.append(_Turn(asked, text[: text.rindex(answer) + len(answer)], rest, ending))
    return turns


def _without_beginnings(known: dict[str, int], turns: list[_Turn], first: list[str | None]) -> list[str | None]:
    """Leave out what begins the user's next message, where another turn has an end: `[INST]`, of some templates.

    A mark that stands before each of the user's messages ends a turn all the same where it follows these, too: that of
    any message, the system's among them.
    """
    begins = [
        token is not None and not _first_of(known, turn.ending) and _first_of(known, turn.asked) != token
        for token, turn in zip(first, turns, strict=True)
    ]
    ended = any(token and not begun for token, begun in zip(first, begins, strict=True))
    return [None if ended and begun else token for token, begun in zip(first, begins, strict=True)]


def _first_of(known: dict[str, int], text: str) -> str | None:
    """Return the token that a text begins with, the longest first: one may begin with another."""
    text = text.lstrip()
    return next((token for token in sorted(known, key=len, reverse=True) if text.startswith(token)), None)


def _any_of(known: dict[str, int], text: str) -> str | None:
    """Return the token that stands first in a text, wherever that is."""
    places = (_first_of(known, text[at:]) for at in range(len(text)))
    return next((token for token in places if token), None)


def _plain(tokenizer: Any, turns: list[_Turn]) -> TurnEnds:
    """Find out which token a text without marks is, if it is one."""
    ids: set[int] = set()
    blank: set[int] = set()
    for turn in turns:
        if not turn.ending:
            continue
        before: list[int] = tokenizer.encode(turn.before, add_special_tokens=False)
        whole: list[int] = tokenizer.encode(turn.before + turn.ending, add_special_tokens=False)
        apart = whole[: len(before)] == before
        pieces = whole[len(before) :] if apart else []
        visible = [piece for piece in pieces if tokenizer.decode([piece]).strip()]
        ends = visible or pieces
        if len(ends) != 1 or ends[0] == tokenizer.unk_token_id:
            texts = ", ".join(f"`{token}`" for token in tokenizer.convert_ids_to_tokens(pieces))
            made = f"the tokens {texts}" if pieces else "part of a token with what stands before it"
            return TurnEnds(problem=f"the chat template ends a turn in the text {turn.ending!r} ({made})")
        (ids if visible else blank).update(ends)
    return TurnEnds(frozenset(ids), frozenset(blank))
