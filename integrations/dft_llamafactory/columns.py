"""Columns through LLaMA-Factory's data pipeline: its converters, its templates, its packing.

A row is converted to messages, and a number for each of them; while a chat is encoded, each token id carries which
message it is of; what comes out, packed or not, has a number for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from llamafactory.data import converter, loader
from llamafactory.data.processor.supervised import SupervisedDatasetProcessor

from dft_plugin.config.handover import swapped
from dft_plugin.core.targets import IGNORE_INDEX
from dft_plugin.errors import ConflictError
from dft_plugin.functional import LossLike, plan_for
from dft_plugin.hf.columns import Column, Numbers, columns_of, of_messages, of_row
from dft_plugin.hf.passports import Passports

HINT = (
    "LLaMA-Factory prepares its data before there is a trainer: start with `dft train`, or `dft autoload enable`. A "
    "`tokenized_path` must have been made with the same `loss:`; give it another path to have it made anew."
)

_ROW, _WHERE, _NUMBERS = "dft_row", "dft_where", "dft_numbers_"
"""Columns between the converter and the template."""

_MESSAGE = 1 << 32
"""An id is below it; the number of its message, from 1 on, is written above."""


@contextmanager
def carrying(loss: LossLike) -> Iterator[None]:
    """Let the columns that a loss reads through all that LLaMA-Factory prepares inside this block."""
    columns = columns_of(plan_for(loss))
    if not columns:
        yield
        return
    align, make = loader.align_dataset, loader._get_dataset_processor

    def aligned(dataset: Any, dataset_attr: Any, *args: Any, **kwargs: Any) -> Any:
        plain = converter.get_dataset_converter

        def converting(*given: Any) -> Any:
            return _Converter(plain(*given), columns, dataset_attr)

        numbered = dataset.map(_numbered, with_indices=True)
        with swapped(converter, "get_dataset_converter", converting):
            return align(numbered, dataset_attr, *args, **kwargs)

    def processor(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        return _Processor(made, columns) if isinstance(made, SupervisedDatasetProcessor) else made

    with ExitStack() as stack:
        stack.enter_context(swapped(loader, "align_dataset", aligned))
        stack.enter_context(swapped(loader, "_get_dataset_processor", processor))
        yield


def _numbered(example: Mapping[str, Any], index: int) -> dict[str, int]:
    del example
    return {_ROW: index}


class _Converter:
    """A converter of LLaMA-Factory's that keeps a number for each message."""

    def __init__(self, inner: Any, columns: Sequence[Column], dataset_attr: Any) -> None:
        self.inner, self.columns = inner, columns
        self.dataset = str(dataset_attr.dataset_name)
        self.messages = dataset_attr.messages if dataset_attr.formatting != "alpaca" else None
        self.role, self.system = dataset_attr.role_tag, dataset_attr.system_tag

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        given = {key: value for key, value in example.items() if key != _ROW}
        where = f"row {example[_ROW]} of the dataset `{self.dataset}`"
        made = self.inner(given)
        messages = given[self.messages] if self.messages else []
        count = len(made["_prompt"]) + len(made["_response"])
        numbers = {
            _NUMBERS + column.name: self._numbers(column, given, messages, count, where) for column in self.columns
        }
        return {**made, **numbers, _WHERE: where}

    def _numbers(
        self, column: Column, given: Mapping[str, Any], messages: Sequence[Any], count: int, where: str
    ) -> Numbers:
        """Return a number for each message that LLaMA-Factory has made of the row."""
        found = of_messages(column, given, messages, where)
        if found.ndim == 0 or not count:
            # Without messages: a row that LLaMA-Factory drops, since it is broken.
            return np.full(count, found if found.ndim == 0 else 0, np.float32)
        if len(found) == count + 1 and messages and messages[0].get(self.role) == self.system:
            # The system prompt goes into the first turn, and counts as that.
            found = found[1:]
        if len(found) != count:
            raise ConflictError(
                [
                    f"{where}: the column `{column.name}` holds {len(found)} numbers, and LLaMA-Factory has made "
                    f"{count} messages of the row; give one for each (answers of several tools in a row are one)."
                ]
            )
        return found


class _Row(list[Any]):
    """A prompt that knows its place in the batch."""

    def __init__(self, prompt: Any, row: int) -> None:
        super().__init__(prompt)
        self.row = row


class _Processor:
    """A supervised processor of LLaMA-Factory's whose rows have columns, in a batch that it maps."""

    def __init__(self, inner: Any, columns: Sequence[Column]) -> None:
        self.inner, self.columns = inner, columns
        self.print_data_example = inner.print_data_example

    def preprocess_dataset(self, examples: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Encode, cut and pack as LLaMA-Factory does."""
        batch = {key: list(examples[key]) for key in examples}
        batch["_prompt"] = [_Row(prompt, row) for row, prompt in enumerate(batch["_prompt"])]
        passports = Passports(len(self.columns))
        encode, template = self.inner._encode_data_example, self.inner.template

        def encoded(prompt: _Row, **rest: Any) -> tuple[list[int], list[int]]:
            return self._sent(batch, prompt.row, passports, *encode(prompt=prompt, **rest))

        with ExitStack() as stack:
            stack.enter_context(swapped(self.inner, "_encode_data_example", encoded))
            stack.enter_context(swapped(self.inner, "template", _Numbering(template)))
            made = dict(self.inner.preprocess_dataset(batch))
        received = [passports.receive(labels) for labels in made["labels"]]
        made["labels"] = [labels.tolist() for labels, _ in received]
        for at, column in enumerate(self.columns):
            made[column.key] = [np.nan_to_num(columns[at], nan=1.0) for _, columns in received]
        return made

    def _sent(
        self, batch: Mapping[str, Any], row: int, passports: Passports, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Take the messages out of ids and labels, and send the labels on with the numbers of these messages."""
        given, numbered = np.asarray(ids, np.int64), np.asarray(labels, np.int64)
        message = _of_labels(given, numbered)
        plain = np.where(numbered == IGNORE_INDEX, numbered, numbered % _MESSAGE).tolist()
        columns = []
        for column in self.columns:
            numbers = np.asarray([1.0, *batch[_NUMBERS + column.name][row]], np.float64).astype(np.float32)
            columns.append(of_row(column, numbers[message], plain, batch[_WHERE][row]))
        return (given % _MESSAGE).tolist(), passports.send(plain, columns)


def _of_labels(ids: Any, labels: Any) -> Any:
    """Return which message each label is of, from 1 on, or 0.

    An end of a turn that LLaMA-Factory puts in the place of a label by itself (`efficient_eos`) is the turn's before.
    """
    of_ids, of_labels = ids // _MESSAGE, np.where(labels == IGNORE_INDEX, 0, labels // _MESSAGE)
    before = np.concatenate([[0], of_ids[:-1]])
    alone = (labels != IGNORE_INDEX) & (of_labels == 0)
    return np.where(alone, before, np.where(labels == IGNORE_INDEX, of_ids, of_labels))


class _Numbering:
    """A template whose token ids say which message they are of."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def encode_multiturn(self, *args: Any, **kwargs: Any) -> list[tuple[list[int], ...]]:
        """Encode as the template does."""
        pairs: Sequence[Sequence[Sequence[int]]] = self.inner.encode_multiturn(*args, **kwargs)
        number: Callable[[int, int], int] = lambda turn, side: (2 * turn + side + 1) * _MESSAGE  # noqa: E731 - short
        return [
            tuple([token + number(turn, side) for token in ids] for side, ids in enumerate(pair))
            for turn, pair in enumerate(pairs)
        ]
