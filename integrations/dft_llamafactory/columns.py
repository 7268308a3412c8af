"""Columns through LLaMA-Factory's data pipeline: its converters, its templates, its packing.

A row is converted to messages, and each of them carries its numbers; while a chat is encoded, each token id carries
which message it is of; what comes out, packed or not, has a number for each token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from llamafactory.data import converter, loader
from llamafactory.data.processor.supervised import SupervisedDatasetProcessor

from dft_plugin.config.handover import swapped
from dft_plugin.hf.chats import of_made_messages
from dft_plugin.hf.columns import LABELS, ROW, Column, numbered, of_row, place
from dft_plugin.hf.passports import Passports, marked, read_marks
from dft_plugin.hf.wrapping import Around

HINT = (
    "LLaMA-Factory prepares its data before there is a trainer: start with `dft train`, or `dft autoload enable`. A "
    "`tokenized_path` must have been made with the same `loss:`; give it another path to have it made anew."
)

_OURS = "dft"
"""A key of each message, between the converter and the template: its numbers, and which row it is of."""


@contextmanager
def keeping(columns: Sequence[Column]) -> Iterator[None]:
    """Let columns through all that LLaMA-Factory prepares inside this block."""
    align, convert, process = loader.align_dataset, converter.get_dataset_converter, loader._get_dataset_processor

    def aligned(dataset: Any, dataset_attr: Any, *args: Any, **kwargs: Any) -> Any:
        def converting(*given: Any) -> Any:
            return _Converter(convert(*given), columns, dataset_attr)

        with swapped(converter, "get_dataset_converter", converting):
            return align(numbered(dataset), dataset_attr, *args, **kwargs)

    def processor(*args: Any, **kwargs: Any) -> Any:
        made = process(*args, **kwargs)
        return _Processor(made, columns) if isinstance(made, SupervisedDatasetProcessor) else made

    with swapped(loader, "align_dataset", aligned), swapped(loader, "_get_dataset_processor", processor):
        yield


class _Converter(Around):
    """A converter of LLaMA-Factory's that gives each message its numbers."""

    def __init__(self, inner: Any, columns: Sequence[Column], dataset_attr: Any) -> None:
        super().__init__(inner)
        self.columns, self.dataset = columns, str(dataset_attr.dataset_name)
        self.messages = dataset_attr.messages if dataset_attr.formatting != "alpaca" else None
        self.role, self.system = dataset_attr.role_tag, dataset_attr.system_tag

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        given = {key: value for key, value in example.items() if key != ROW}
        made, where = self.inner(given), place(example[ROW], self.dataset)
        given_messages = given[self.messages] if self.messages else []
        # LLaMA-Factory puts a system prompt into the first turn.
        folded = bool(given_messages) and given_messages[0].get(self.role) == self.system
        messages = [*made["_prompt"], *made["_response"]]
        found = [
            of_made_messages(column, given, given_messages, len(messages), where, folded=folded)
            for column in self.columns
        ]
        ours = [
            {**message, _OURS: {"where": where, "numbers": numbers}}
            for message, numbers in zip(messages, np.stack(found, axis=1).tolist(), strict=True)
        ]
        count = len(made["_prompt"])
        return {**made, "_prompt": ours[:count], "_response": ours[count:]}


class _Processor(Around):
    """A supervised processor of LLaMA-Factory's whose rows have columns, in a batch that it maps."""

    def __init__(self, inner: Any, columns: Sequence[Column]) -> None:
        super().__init__(inner)
        self.columns = columns

    def preprocess_dataset(self, examples: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Encode, cut and pack as LLaMA-Factory does."""
        passports, encode = Passports(len(self.columns)), self.inner._encode_data_example

        def encoded(prompt: list[Any], response: list[Any], **rest: Any) -> tuple[list[int], list[int]]:
            made = encode(prompt=prompt, response=response, **rest)
            return self._sent(passports, [message[_OURS] for message in prompt + response], *made)

        with (
            swapped(self.inner, "_encode_data_example", encoded),
            swapped(self.inner, "template", _Numbering(self.inner.template)),
        ):
            made = dict(self.inner.preprocess_dataset(examples))
        received = [passports.receive(labels) for labels in made[LABELS]]
        made[LABELS] = [labels.tolist() for labels, _ in received]
        for at, column in enumerate(self.columns):
            made[column.key] = [np.nan_to_num(columns[at], nan=1.0) for _, columns in received]
        return made

    def _sent(
        self, passports: Passports, messages: Sequence[Any], ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Take the messages out of ids and labels, and send the labels on with the numbers of these messages."""
        ids, labels, message_S = read_marks(ids, labels)
        # What is of none has no number of its own.
        numbers_MC = np.asarray([[1.0] * passports.width, *(one["numbers"] for one in messages)], np.float32)
        found = zip(self.columns, numbers_MC[message_S].T, strict=True)
        columns = [of_row(column, column_S, labels, messages[0]["where"]) for column, column_S in found]
        return ids, passports.send(labels, columns)


class _Numbering(Around):
    """A template whose token ids say which message they are of."""

    def encode_multiturn(self, *args: Any, **kwargs: Any) -> list[tuple[list[int], ...]]:
        """Encode as the template does."""
        pairs: Sequence[Sequence[Sequence[int]]] = self.inner.encode_multiturn(*args, **kwargs)
        return [
            tuple(marked(ids, 2 * turn + side + 1) for side, ids in enumerate(pair)) for turn, pair in enumerate(pairs)
        ]
