"""Columns on their way from a trainer's datasets into its batches, through whatever collates them.

Shapes: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dft_plugin.config.beforehand import COMPUTABLE
from dft_plugin.core.targets import IGNORE_INDEX
from dft_plugin.errors import ConflictError
from dft_plugin.hf.columns import (
    LABELS,
    PACKED,
    TOKENS,
    Column,
    Numbers,
    beginnings,
    columns_of,
    missing,
    of_prepared,
    of_row,
)
from dft_plugin.hf.counting import context_parallel_size
from dft_plugin.hf.facts import BITS, COLUMN, as_bits
from dft_plugin.hf.passports import Passports
from dft_plugin.hf.wrapping import Around

_COLLATORS = ("data_collator", "eval_data_collator")


class ColumnCollator(Around):
    """A collator around another, whose batches hold the columns; see `passports.py`.

    Attributes:
        inner: the other.
        columns: what is carried.
    """

    def __init__(self, inner: Callable[..., Any], columns: Sequence[Column]) -> None:
        super().__init__(inner)
        self.columns = tuple(columns)
        # Beside those that are read, what was computed for another loss.
        names = {*COMPUTABLE, *(column.name for column in columns)}
        self._own = names | {COLUMN + name for name in names}

    def __call__(self, features: Any, *args: Any, **kwargs: Any) -> Any:
        """Collate; `dft_bits_NAME` of the result are the columns, int32 [B, S].

        Raises:
            ConflictError: a row lacks a column, or has a number that cannot be used; or the other collator makes
                labels of its own.
        """
        passports, key = Passports(len(self.columns)), LABELS if _first_key(features, LABELS) else TOKENS
        sent = self._sent(features, key, passports)
        if key == LABELS:
            batch = self.inner(sent, *args, **kwargs)
            out = batch.get(LABELS)
        else:
            # It makes the labels from the tokens: the same once more shows where each token comes out.
            batch = self.inner(self._plain(features), *args, **kwargs)
            out = self.inner(sent, *args, **kwargs).get(TOKENS)
        if out is None or batch.get(LABELS) is None or batch.get("shift_labels") is not None:
            raise ConflictError(
                [
                    "columns cannot be carried through this data collator: it makes no `labels`, or `shift_labels` "
                    "beside them. Let it make `labels` alone."
                ]
            )
        labels_BS, columns = passports.receive(out)
        if key == LABELS:
            batch[LABELS] = torch.from_numpy(labels_BS) if isinstance(out, Tensor) else labels_BS
        else:
            batch[LABELS] = _without(batch[LABELS], labels_BS == IGNORE_INDEX)
        labels = torch.as_tensor(batch[LABELS])
        for column, column_BS in zip(self.columns, columns, strict=True):
            batch[BITS + column.name] = as_bits(_settled(column, torch.from_numpy(column_BS), labels))
        return batch

    def _plain(self, features: Any) -> Any:
        """Return features, which may be lists in lists, without the columns."""
        if isinstance(features, Mapping):
            return {key: value for key, value in features.items() if key not in self._own}
        return [self._plain(feature) for feature in features]

    def _sent(self, features: Any, key: str, passports: Passports) -> Any:
        """Return features without the columns, numbers in the place of labels, or of tokens."""
        if not isinstance(features, Mapping):
            return [self._sent(feature, key, passports) for feature in features]
        if key not in features or np.ndim(features[key]) != 1:
            raise ConflictError(
                [f"a row of the data ({', '.join(features)}) holds no list `{key}`, so columns cannot be carried."]
            )
        values = [self._column(column, features, features[key]) for column in self.columns]
        sent = passports.send(features[key], values, ignore=IGNORE_INDEX if key == LABELS else None)
        given = features[key]
        alike = torch.tensor(sent) if isinstance(given, Tensor) else np.asarray(sent)
        return {**self._plain(features), key: sent if isinstance(given, list) else alike}

    def _column(self, column: Column, features: Mapping[str, Any], ids: Any) -> Numbers:
        if column.key in features:
            return of_prepared(column, features[column.key], ids, "a row of the data")
        if column.name not in features:
            raise missing(column, list(features), "a row of the data")
        return of_row(column, features[column.name], ids, "a row of the data", beginnings(features, len(ids)))


def _first_key(features: Any, key: str) -> bool:
    first = features
    while not isinstance(first, Mapping):
        first = first[0]
    return key in first


def _without(labels: Any, ignored_BS: NDArray[np.bool_]) -> Any:
    """Return labels [B, S] that a collator has made of tokens, without some; others of shapes are told apart later."""
    if np.shape(labels) != ignored_BS.shape or not ignored_BS.any():
        return labels
    if isinstance(labels, Tensor):
        return labels.masked_fill(torch.from_numpy(ignored_BS), IGNORE_INDEX)
    return np.where(ignored_BS, IGNORE_INDEX, labels)


def _settled(column: Column, column_BS: Tensor, labels: Tensor) -> Tensor:
    if labels.shape != column_BS.shape:
        raise ConflictError(
            [f"the data collator makes labels of shape {tuple(labels.shape)} of tokens of {tuple(column_BS.shape)}."]
        )
    target_BS = labels[..., 1:] != IGNORE_INDEX
    if bool((target_BS & column_BS[..., 1:].isnan()).any()):
        raise ConflictError(
            [
                f"the column `{column.name}` has no number for a token that is trained: padding that is no -100, or a "
                "label that the data collator made by itself. Have those labels be -100."
            ]
        )
    return column_BS.nan_to_num(1.0)


def problems(trainer: Any, columns: Sequence[Column], hint: str) -> list[str]:
    """List what is wrong with the columns in a trainer's datasets. The numbers are read where they can be.

    Args:
        trainer: a `transformers.Trainer`.
        columns: what the loss reads.
        hint: what to do where a column is not there, or cannot be used.
    """
    found = []
    if columns and context_parallel_size(trainer) > 1:
        names = ", ".join(f"`{column.name}`" for column in columns)
        found.append(f"context parallelism splits labels over ranks, and not {names}. Turn it off, or leave them out.")
    for name, dataset in _datasets(trainer):
        for column in columns:
            try:
                _check(column, dataset, name)
            except ConflictError as error:
                found.append(" ".join([str(error), hint]).rstrip())
    return found


def _datasets(trainer: Any) -> list[tuple[str, Any]]:
    evaluated = getattr(trainer, "eval_dataset", None)
    named = evaluated.items() if isinstance(evaluated, Mapping) else [("", evaluated)]
    several = [(f"the evaluation set {name}".rstrip(), dataset) for name, dataset in named]
    known = [("the training set", trainer.train_dataset), *several]
    return [(name, dataset) for name, dataset in known if dataset is not None and not isinstance(dataset, str)]


def _check(column: Column, dataset: Any, where: str) -> None:
    there = keys_of(dataset)
    if there is None or column.key in there:
        return
    if column.name not in there:
        why = "" if where.startswith("the training") else " (eval_loss and dft/* are weighed as the training is)"
        raise missing(column, there, where + why)
    if TOKENS not in there:
        raise ConflictError(
            [
                f"the rows of {where} hold no tokens ({', '.join(there)}), so that nobody knows which of them "
                f"a number of the column `{column.name}` is for: they are tokenised batch by batch, or not prepared."
            ]
        )
    if hasattr(dataset, "select_columns") and hasattr(dataset, "__len__"):
        kept = [key for key in (*PACKED, LABELS if LABELS in there else TOKENS) if key in there]
        read = dataset.select_columns([column.name, *kept]).with_format(None)
        for number, row in enumerate(read):
            labels = row[kept[-1]]
            of_row(column, row[column.name], labels, f"row {number} of {where}", beginnings(row, len(labels)))


def keys_of(dataset: Any) -> list[str] | None:
    """Return the names of a dataset's columns; None where only reading it would tell."""
    names = getattr(dataset, "column_names", None)
    if names is not None:
        return list(names)
    features = getattr(dataset, "features", None)
    if features is not None:
        return list(features)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        return None
    first = dataset[0]
    return list(first) if isinstance(first, Mapping) else None


def carry(trainer: Any, columns: Sequence[Column], change: Callable[[Any, str, Any], None]) -> None:
    """Have a trainer keep the columns of its datasets, and its collators carry them.

    Args:
        trainer: a `transformers.Trainer`.
        columns: what the loss reads; without any, nothing is changed.
        change: sets an attribute until the loss is taken off.
    """
    if not columns:
        return
    trainer._set_signature_columns_if_needed()
    kept = [key for column in columns for key in (column.name, column.key)]
    change(trainer, "_signature_columns", [*trainer._signature_columns, *kept])
    for name in _COLLATORS:
        inner = vars(trainer).get(name)
        if inner is not None:
            change(trainer, name, ColumnCollator(inner, columns))


__all__ = ["ColumnCollator", "carry", "columns_of", "keys_of", "problems"]
