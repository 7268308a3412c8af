"""What a user said of tokens in words, turned into ids by the model's tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoTokenizer, ProcessorMixin

from dft_plugin.core.plan import LossPlan, TokenRules
from dft_plugin.hf.model import eos_token_ids, text_config
from dft_plugin.hf.turns import TurnEnds, turn_ends
from dft_plugin.objectives import wording
from dft_plugin.objectives.wording import listed

_ALWAYS, _FACTORS = "loss.always_learn", "loss.weights.tokens"


@dataclass(frozen=True)
class Reading:
    """What became of the words.

    Attributes:
        plan: with ids in the place of words; as it was given where there are problems.
        ends: ids that end an answer, as far as they are known; but for white space, which stands inside answers, too.
        said: which tokens are treated apart, for the start-up line; empty where none is.
        problems: everything that is in the way, each with what to do.
    """

    plan: LossPlan
    ends: tuple[int, ...]
    said: str = ""
    problems: tuple[str, ...] = ()


def read(plan: LossPlan, model: nn.Module, processor: Any = None, ends: Iterable[int] = ()) -> Reading:
    """Turn the words of a plan's rules into ids, and find what ends an answer.

    Args:
        plan: its rules may hold words.
        model: that is to be trained, without wrappers.
        processor: the tokenizer, or a processor around it; None: there is none.
        ends: ids that the host knows to end an answer.
    """
    reader = _Reader(model, processor, ends)
    if not plan.rules:
        return Reading(plan, reader.ends)
    if plan.rules.words and reader.tokenizer is None:
        return Reading(plan, reader.ends, problems=(_no_tokenizer(plan.rules.words),))
    kinds = reader.kinds([word for word in plan.rules.always if isinstance(word, str)])
    given = reader.given(_ALWAYS, plan.rules.ids)
    factors = reader.factors(plan.rules)
    if reader.problems:
        return Reading(plan, reader.ends, problems=tuple(reader.problems))
    always = {**kinds, **({"ids": given} if given else {})}
    # Of some of a kind it is how these are left out.
    lost = [kind for kind, ids in always.items() if all(factors.get(number) == 0 for number in ids)]
    if lost:
        said = f"`{_ALWAYS}: {lost[0]}` gives tokens weight 1, and `{_FACTORS}` multiplies all of these by 0"
        return Reading(plan, reader.ends, problems=(f"{said}. Drop one of them.",))
    read_plan = plan.with_ids({number for ids in always.values() for number in ids}, factors)
    return Reading(read_plan, reader.ends, _said(reader, always, factors, plan.rules.column))


def kinds_of_tokens(model: nn.Module, processor: Any = None) -> dict[str, tuple[int, ...]]:
    """Return the ids of what ends an answer (`eos`), of tokens that were `added`, and of other `special` ones.

    A kind of which nothing is known is left out.
    """
    reader = _Reader(model, processor, ())
    if reader.tokenizer is None:
        return {"eos": reader.ends} if reader.ends else {}
    return {kind: tuple(ids) for kind, ids in reader.kinds(("eos", "added", "special")).items()}


class _Reader:
    """Asks one model and its tokenizer, and collects what is wrong."""

    def __init__(self, model: Any, processor: Any, ends: Iterable[int]) -> None:
        self.config = getattr(model, "config", None)
        tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
        self.tokenizer = tokenizer if hasattr(tokenizer, "get_vocab") else None
        self.vocab_size: int | None = getattr(text_config(model), "vocab_size", None)
        self.problems: list[str] = []
        ends = list(ends)
        turns = TurnEnds() if self.tokenizer is None else turn_ends(processor, self.tokenizer)
        # A host that knows what ends an answer may have a format of its own.
        self._unknown_turns = None if ends else turns.problem
        eos = getattr(self.tokenizer, "eos_token_id", None)
        known = [*eos_token_ids(model), *ends, *turns.ids, *([] if eos is None else [eos])]
        self.ends = tuple(sorted(self._within(known)))
        self._blank_ends = turns.blank

    def kinds(self, words: Collection[str]) -> dict[str, list[int]]:
        """Return the ids of each kind of tokens."""
        find = {"eos": self._eos, "special": self._special, "added": self._added}
        found = {word: sorted(find[word]()) for word in words}
        return {word: ids for word, ids in found.items() if ids}

    def given(self, key: str, ids: Collection[int]) -> list[int]:
        """Return ids that the user wrote, which have to be the model's."""
        for number in ids:
            if self.vocab_size is not None and number >= self.vocab_size:
                self.problems.append(
                    f"`{key}`: {number} is no token of this model, which has {self.vocab_size} (0 to "
                    f"{self.vocab_size - 1})."
                )
        return sorted(set(ids))

    def factors(self, rules: TokenRules) -> dict[int, float]:
        """Return factors by id."""
        found: dict[int, float] = {}
        keys: dict[int, str | int] = {}
        self.given(_FACTORS, rules.factors_by_id)
        for key, factor in rules.factors.items():
            number = key if isinstance(key, int) else self._one_token(key)
            if number in keys:
                self.problems.append(
                    f"`{_FACTORS}`: {keys[number]!r} and {key!r} are the same token, {number}. Leave one of them out."
                )
            if number is not None:
                found[number], keys[number] = factor, key
        return found

    def texts(self, ids: Collection[int]) -> list[str]:
        """Return what to call tokens: their text, or their id where nobody knows it."""
        if self.tokenizer is None:
            return [str(number) for number in ids]
        # A model may have rows that are nobody's.
        size = len(self.tokenizer)
        named = [self.tokenizer.convert_ids_to_tokens(number) if number < size else None for number in ids]
        return [f"`{text}`" if text else str(number) for text, number in zip(named, ids, strict=True)]

    def _within(self, ids: Iterable[int]) -> set[int]:
        """Leave out what the model has no logit for: it cannot be a target."""
        return {number for number in ids if self.vocab_size is None or number < self.vocab_size}

    def _eos(self) -> Collection[int]:
        if self._unknown_turns is not None:
            self.problems.append(
                f"`{_ALWAYS}: eos`: {self._unknown_turns}, so nobody knows which token ends a turn. Give the ids "
                "of the tokens that end an answer in its place."
            )
        elif not self.ends and not self._blank_ends:
            self.problems.append(
                f"`{_ALWAYS}: eos`: neither the model's configs nor the tokenizer nor its chat template name a token "
                "that ends an answer. Set `eos_token` of the tokenizer, or give the id in the place of `eos`."
            )
        return {*self.ends, *self._blank_ends}

    def _special(self) -> set[int]:
        tokenizer: Any = self.tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        found = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
        if not self._within(found):
            self.problems.append(
                f"`{_ALWAYS}: special`: the tokenizer marks no token as special. Give ids, or leave it out."
            )
        return self._within(found)

    def _added(self) -> set[int]:
        """Return ids of tokens that the base model's tokenizer has not, or its embedding has no row for.

        A reserved token that was given another text is as new as one at the end.
        """
        tokenizer: Any = self.tokenizer
        name = getattr(self.config, "_name_or_path", "")
        try:
            known, rows = _base(name, getattr(self.config, "_commit_hash", None))
        except Exception as error:  # A tokenizer may be code of its own.
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.problems.append(
                f"`{_ALWAYS}: added`: the tokenizer that was saved with the base model ({name or 'of no known path'}) "
                f"cannot be loaded without a network ({first}), so that nobody knows which tokens were added. Load "
                "the model from a folder that holds its tokenizer, or give the ids of the tokens in the place of "
                "`added`."
            )
            return set()
        vocab = tokenizer.get_vocab()
        added = {number for token, number in vocab.items() if known.get(token) != number or number >= rows}
        if not added:
            self.problems.append(
                f"`{_ALWAYS}: added`: the tokenizer that was saved with the base model ({name}) has all tokens of "
                "this one. Give the ids of the tokens that you mean, or leave it out."
            )
        beyond = sorted(added - self._within(added))
        if beyond:
            self.problems.append(
                f"`{_ALWAYS}: added`: {listed(self.texts(beyond))} has no row in the model's embedding, which has "
                f"{self.vocab_size}. Resize it: model.resize_token_embeddings(len(tokenizer))."
            )
        return added

    def _one_token(self, text: str) -> int | None:
        tokenizer: Any = self.tokenizer
        added: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
        ids = [added[text]] if text in added else tokenizer.encode(text, add_special_tokens=False)
        unknown = ids == [tokenizer.unk_token_id] and text != tokenizer.unk_token
        if len(ids) == 1 and not unknown:
            self.given(_FACTORS, ids)
            return int(ids[0])
        hint = f" To mean the id, write {text} without quotes." if text.isdecimal() else ""
        if unknown:
            self.problems.append(
                f"`{_FACTORS}`: {text!r} is not in the tokenizer's vocabulary; one token is needed.{hint}"
            )
        else:
            self.problems.append(
                f"`{_FACTORS}`: {text!r} is {len(ids)} tokens ({', '.join(self.texts(ids))}); one is needed. Give "
                f"factors to the tokens that it is made of, by text or id.{hint}"
            )
        return None


def _base(name: str, revision: str | None) -> tuple[dict[str, int], int]:
    """Return the vocabulary of the tokenizer saved with a model, and the rows of its embedding."""
    if not name:
        raise ValueError("its config does not say where it was loaded from")
    # False asks nobody at the terminal.
    how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "revision": revision or "main"}
    config = AutoConfig.from_pretrained(name, **how).get_text_config()
    rows = getattr(config, "vocab_size", None)
    vocab: dict[str, int] = AutoTokenizer.from_pretrained(name, **how).get_vocab()
    return vocab, max(vocab.values(), default=0) + 1 if rows is None else rows


def _no_tokenizer(words: Collection[str]) -> str:
    return (
        f"`{_ALWAYS}` or `{_FACTORS}` name tokens by words ({listed([f'`{word}`' for word in words])}), and there is "
        "no tokenizer to turn them into ids. Give the trainer `processing_class=tokenizer`, or attach(model, loss, "
        "tokenizer=tokenizer), or write ids."
    )


def _said(reader: _Reader, always: dict[str, list[int]], factors: dict[int, float], column: str | None) -> str:
    number = len({number for ids in always.values() for number in ids})
    named = ", ".join(f"{kind} {listed(reader.texts(ids))}" for kind, ids in always.items())
    learned = f"{number} token{'s' if number > 1 else ''} ({named})" if always else ""
    each = zip(reader.texts(factors), factors.values(), strict=True)
    return "; ".join([*wording.always_learned(learned), *wording.weights(column, each)])
