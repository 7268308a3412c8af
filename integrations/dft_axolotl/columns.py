"""Columns through Axolotl's data pipeline: its prompt strategies, its caches, its cutting. Packing is the collator's.

The functions that are wrapped are handed the config, and without a loss that reads columns they are what they were.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

from axolotl.datasets import TokenizedPromptDataset
from axolotl.prompt_strategies.chat_template import ChatTemplateStrategy
from axolotl.utils.data import sft

from dft_plugin.config.handover import swapped
from dft_plugin.errors import ConflictError
from dft_plugin.hf.chats import Chat, of_example
from dft_plugin.hf.columns import LABELS, ROW, TOKENS, Column, Numbers, columns_of, cut, numbered, place
from dft_plugin.hf.wrapping import Around
from dft_plugin.plans import plan_for

HINT = (
    "Axolotl prepares its data before there is a trainer: start with `axolotl train` or `dft train`, and with another "
    "`dataset_prepared_path` where data was prepared by something else."
)

_MARK = "dft_carries"


def loss_of(cfg: Any) -> Any:
    """Return what stands after `loss:` in Axolotl's config."""
    loss = cfg.get("loss")
    return loss if loss is None or isinstance(loss, str) else cfg.to_dict()["loss"]


def install() -> None:
    """Wrap what prepares data, once in a process."""
    for name, ours in (
        ("get_dataset_wrapper", _tokenising),
        ("generate_dataset_hash_from_config", _hashing),
        ("handle_long_seq_in_dataset", _cutting),
    ):
        plain = getattr(sft, name)
        if not hasattr(plain, _MARK):
            made = wraps(plain)(partial(ours, plain))
            setattr(made, _MARK, True)
            setattr(sft, name, made)


@contextmanager
def keeping(columns: Sequence[Column]) -> Iterator[None]:
    """Let columns through what is prepared inside this block, whatever the config says of a loss."""
    install()
    with swapped(sys.modules[__name__], "_columns", lambda cfg: columns):
        yield


def _columns(cfg: Any) -> tuple[Column, ...]:
    loss = loss_of(cfg)
    return () if loss is None else columns_of(plan_for(loss))


def _hashing(plain: Callable[..., str], cfg: Any, *args: Any, **kwargs: Any) -> str:
    """Data that is prepared with columns is other data, in the cache and on the hub."""
    made, names = plain(cfg, *args, **kwargs), [column.key for column in _columns(cfg)]
    return hashlib.sha256("|".join([made, *names]).encode()).hexdigest()[:32] if names else made


def _cutting(plain: Callable[..., Any], dataset: Any, sequence_len: int, cfg: Any) -> Any:
    """Axolotl truncates the lists that it knows."""
    made, keys = plain(dataset, sequence_len, cfg), [column.key for column in _columns(cfg)]
    if not keys or str(cfg.excess_length_strategy).lower() != "truncate" or TOKENS not in made.column_names:
        return made
    return made.map(partial(cut, keys=keys, end="end"), num_proc=cfg.dataset_num_proc)


def _tokenising(
    plain: Callable[..., Any], dataset_config: Any, tokenizer: Any, cfg: Any, *args: Any, **kwargs: Any
) -> Any:
    """Tokenise a dataset with its columns."""
    columns, process = _columns(cfg), TokenizedPromptDataset.process
    if not columns:
        return plain(dataset_config, tokenizer, cfg, *args, **kwargs)
    name = str(dataset_config["path"])

    def processed(self: Any, dataset: Any) -> Any:
        with swapped(self, "prompt_tokenizer", _Strategy(self.prompt_tokenizer, columns, name)):
            return process(self, numbered(dataset))

    with swapped(TokenizedPromptDataset, "process", processed):
        made, prompter = plain(dataset_config, tokenizer, cfg, *args, **kwargs)
    return _with_all(made, columns, name), prompter


def _with_all(made: Any, columns: Sequence[Column], name: str) -> Any:
    """Give a dataset that came tokenised its numbers per token; refuse what went another way."""
    there = made.column_names or []
    if all(column.key in there for column in columns):
        return made
    if not {TOKENS, LABELS} <= {*there}:
        raise ConflictError(
            [
                f"the dataset `{name}` is made by a `type` that does not tokenise rows with Axolotl's strategies, so "
                f"`{columns[0].name}` is lost. Use `chat_template`, or tokens with a number for each."
            ]
        )
    return made.map(partial(_tokenised, columns=columns, name=name), with_indices=True)


def _tokenised(example: Mapping[str, Any], row: int, columns: Sequence[Column], name: str) -> dict[str, Numbers]:
    return of_example(columns, example, example[TOKENS], example[LABELS], place(row, name), tokenised=True)


class _Strategy(Around):
    """A prompt strategy of Axolotl's whose rows have columns."""

    def __init__(self, inner: Any, columns: Sequence[Column], dataset: str) -> None:
        super().__init__(inner)
        self.columns, self.dataset = columns, dataset

    def tokenize_prompt(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """Tokenise as the strategy does, rows one by one: it may make several of one."""
        if not isinstance(prompt[ROW], list):
            made = dict(self.inner.tokenize_prompt(self._plain(prompt)))
            return {**made, **self._numbers(prompt, made[TOKENS], made[LABELS])} if TOKENS in made else made
        joined: dict[str, list[Any]] = {}
        for values in zip(*prompt.values(), strict=True):
            row = dict(zip(prompt, values, strict=True))
            made = dict(self.inner.tokenize_prompt({key: [value] for key, value in self._plain(row).items()}))
            several = zip(made.get(TOKENS, ()), made.get(LABELS, ()), strict=True)
            found = [self._numbers(row, ids, labels) for ids, labels in several]
            made |= {column.key: [one[column.key] for one in found] for column in self.columns if found}
            for key, rows in made.items():
                joined.setdefault(key, []).extend(rows)
        return joined

    def _plain(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row without ours: a None in a column would have Axolotl drop the whole row."""
        ours = {ROW, *(column.name for column in self.columns)}
        return {key: value for key, value in row.items() if key not in ours}

    def _numbers(self, row: Mapping[str, Any], ids: Sequence[int], labels: Sequence[int]) -> dict[str, Numbers]:
        given = {key: value for key, value in row.items() if key != ROW}
        return of_example(self.columns, given, ids, labels, place(row[ROW], self.dataset), chat=self._chat(given))

    def _chat(self, row: dict[str, Any]) -> Chat | None:
        strategy = self.inner
        if not isinstance(strategy, ChatTemplateStrategy):
            return None
        messages, turns = strategy._get_messages(row), strategy.get_conversation_thread(row)

        def render(count: int) -> Sequence[int]:
            made = strategy.prompter.build_prompt(turns[:count], tools=strategy._get_tools(row))
            rendered: Sequence[int] = made[TOKENS] if isinstance(made, Mapping) else made
            return rendered

        # A system prompt may come from a column of its own, and Axolotl drops some.
        return Chat(messages, render, len(turns) - len(messages))
