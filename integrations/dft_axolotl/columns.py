"""Columns through Axolotl's data pipeline: its prompt strategies, its caches, its cutting. Packing is the collator's.

The functions that are wrapped are handed the config, and without a loss that reads columns they are what they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import numpy as np
from axolotl.datasets import TokenizedPromptDataset
from axolotl.prompt_strategies.chat_template import ChatTemplateStrategy
from axolotl.utils.data import sft

from dft_plugin.config.handover import swapped
from dft_plugin.errors import ConflictError
from dft_plugin.functional import plan_for
from dft_plugin.hf.carrying import LABELS, TOKENS
from dft_plugin.hf.columns import Column, Numbers, columns_of, cut, of_chat, of_messages, of_row, of_text

HINT = (
    "Axolotl prepares its data before there is a trainer: start with `axolotl train` or `dft train`, and with another "
    "`dataset_prepared_path` where data was prepared by something else."
)

_ROW = "dft_row"
_MARK = "dft_carries"


def loss_of(cfg: Any) -> Any:
    """Return what stands after `loss:` in Axolotl's config."""
    loss = cfg.get("loss")
    return loss if loss is None or isinstance(loss, str) else cfg.to_dict()["loss"]


def install() -> None:
    """Wrap what prepares data, once in a process."""
    for name, wrap in (
        ("get_dataset_wrapper", _wrapping),
        ("generate_dataset_hash_from_config", _hashing),
        ("handle_long_seq_in_dataset", _cutting),
    ):
        plain = getattr(sft, name)
        if not hasattr(plain, _MARK):
            made = wrap(plain)
            setattr(made, _MARK, True)
            setattr(sft, name, made)


def _columns(cfg: Any) -> tuple[Column, ...]:
    loss = loss_of(cfg)
    return () if loss is None else columns_of(plan_for(loss))


def _hashing(plain: Callable[..., str]) -> Callable[..., str]:
    @wraps(plain)
    def generate(cfg: Any, *args: Any, **kwargs: Any) -> str:
        """Data that is prepared with columns is other data, in the cache and on the hub."""
        made, names = plain(cfg, *args, **kwargs), [column.key for column in _columns(cfg)]
        return hashlib.sha256("|".join([made, *names]).encode()).hexdigest()[:32] if names else made

    return generate


def _cutting(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def handle(dataset: Any, sequence_len: int, cfg: Any) -> Any:
        """Axolotl truncates the lists that it knows."""
        made, keys = plain(dataset, sequence_len, cfg), [column.key for column in _columns(cfg)]
        if not keys or str(cfg.excess_length_strategy).lower() != "truncate" or TOKENS not in made.column_names:
            return made
        return made.map(partial(_cut, keys=keys), num_proc=cfg.dataset_num_proc)

    return handle


def _cut(example: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: cut(example[key], len(example[TOKENS]), "end") for key in keys}


def _wrapping(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def wrapper(dataset_config: Any, tokenizer: Any, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """Tokenise a dataset with its columns."""
        columns, process = _columns(cfg), TokenizedPromptDataset.process
        if not columns:
            return plain(dataset_config, tokenizer, cfg, *args, **kwargs)
        name = str(dataset_config["path"])

        def processed(self: Any, dataset: Any) -> Any:
            numbered = dataset.map(_numbered, with_indices=True)
            with swapped(self, "prompt_tokenizer", _Strategy(self.prompt_tokenizer, columns, name)):
                return process(self, numbered)

        with swapped(TokenizedPromptDataset, "process", processed):
            made, prompter = plain(dataset_config, tokenizer, cfg, *args, **kwargs)
        return _with_all(made, columns, name), prompter

    return wrapper


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


def _tokenised(example: Mapping[str, Any], index: int, columns: Sequence[Column], name: str) -> dict[str, Numbers]:
    where = f"row {index} of the dataset `{name}`"
    return {column.key: _read(column, of_row, example, example[LABELS], where) for column in columns}


def _read(
    column: Column, of: Callable[..., Numbers], example: Mapping[str, Any], labels: Sequence[int], where: str
) -> Numbers:
    value = example[column.name] if column.name in example else of_messages(column, example, (), where)
    return of(column, value, labels, where)


def _numbered(example: Mapping[str, Any], index: int) -> dict[str, int]:
    del example
    return {_ROW: index}


class _Strategy:
    """A prompt strategy of Axolotl's whose rows have columns."""

    def __init__(self, inner: Any, columns: Sequence[Column], dataset: str) -> None:
        self.inner, self.columns, self.dataset = inner, columns, dataset
        self._names = {column.name for column in columns}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def tokenize_prompt(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """Tokenise as the strategy does, rows one by one: it may make several of one."""
        if not isinstance(prompt[_ROW], list):
            return self._one(dict(prompt), self.inner.tokenize_prompt)
        keys, made = list(prompt), dict[str, list[Any]]()
        for values in zip(*(prompt[key] for key in keys), strict=True):
            for key, rows in self._one(dict(zip(keys, values, strict=True)), self._batch_of_one).items():
                made.setdefault(key, []).extend(rows)
        return made

    def _batch_of_one(self, row: Mapping[str, Any]) -> dict[str, list[Any]]:
        return dict(self.inner.tokenize_prompt({key: [value] for key, value in row.items()}))

    def _one(self, row: dict[str, Any], tokenise: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        where = f"row {row.pop(_ROW)} of the dataset `{self.dataset}`"
        # A None in a column would have Axolotl drop the whole row.
        made = dict(tokenise({key: value for key, value in row.items() if key not in self._names}))
        if TOKENS not in made:
            return made
        batched = bool(made[TOKENS]) and isinstance(made[TOKENS][0], list)
        several = (made[TOKENS], made[LABELS]) if batched else ([made[TOKENS]], [made[LABELS]])
        for column in self.columns:
            found = [self._column(column, row, ids, labels, where) for ids, labels in zip(*several, strict=True)]
            made[column.key] = found if batched else found[0]
        return made

    def _column(
        self, column: Column, row: Mapping[str, Any], ids: Sequence[int], labels: Sequence[int], where: str
    ) -> Numbers:
        strategy = self.inner
        if not isinstance(strategy, ChatTemplateStrategy):
            return _read(column, of_text, row, labels, where)
        messages = strategy._get_messages(row)
        turns = strategy.get_conversation_thread(row)
        numbers = of_messages(column, row, messages, where)
        if numbers.ndim:
            # A system prompt of a column of its own has no number; one that Axolotl drops needs none.
            more = len(turns) - len(messages)
            numbers = np.concatenate([np.full(max(more, 0), np.nan, np.float32), numbers[max(-more, 0) :]])

        def render(count: int) -> Sequence[int]:
            made = strategy.prompter.build_prompt(turns[:count], tools=strategy._get_tools(row))
            rendered: Sequence[int] = made[TOKENS] if isinstance(made, Mapping) else made
            return rendered

        return of_chat(column, {**row, column.name: numbers}, turns, ids, labels, render, where)
