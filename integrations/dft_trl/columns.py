"""Columns through SFTTrainer's preparation, which tokenises, masks, truncates and packs tokens and labels alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from trl import SFTTrainer
from trl.data_utils import _tokenize, is_conversational

from dft_plugin.config.handover import swapped
from dft_plugin.errors import ConflictError
from dft_plugin.functional import LossLike, plan_for
from dft_plugin.hf.carrying import LABELS, TOKENS, keys_of
from dft_plugin.hf.columns import Column, Numbers, columns_of, cut, missing, of_chat, of_row, of_text

HINT = (
    "SFTTrainer prepares its data while it is made, and keeps tokens and labels alone: make it inside "
    "`with dft_trl.columns.carrying(loss): trainer = SFTTrainer(...)`, or start with `dft train`."
)


@contextmanager
def carrying(loss: LossLike) -> Iterator[None]:
    """Let each SFTTrainer that is made inside this block keep the columns that a loss reads.

    Args:
        loss: what stands after `loss:`.
    """
    columns = columns_of(plan_for(loss))
    plain: Any = SFTTrainer._prepare_dataset
    if not columns:
        yield
        return

    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        return prepared(self, columns, partial(plain, self), *args, **kwargs)

    with swapped(SFTTrainer, "_prepare_dataset", prepare):
        yield


def prepared(
    trainer: Any,
    columns: Sequence[Column],
    inner: Callable[..., Any],
    dataset: Any,
    processing_class: Any,
    args: Any,
    packing: bool,
    formatting_func: Any,
    dataset_name: str,
) -> Any:
    """Prepare a dataset as `SFTTrainer._prepare_dataset` does, with columns.

    TRL does it twice: first without cutting or packing, which leaves each row as it was and adds its tokens; from
    these and the columns come numbers per token; then TRL cuts and packs what is tokenised by now.

    Args:
        trainer: it knows the chat template.
        columns: what to keep, as `dft_column_NAME`.
        inner: TRL's own method.
        dataset: as TRL's; so are the others.
        processing_class: TRL's.
        args: TRL's.
        packing: TRL's.
        formatting_func: TRL's.
        dataset_name: TRL's.

    Raises:
        ConflictError: a row lacks a column, or has a number that cannot be used.
    """
    tokenised = TOKENS in _keys(dataset)
    whole = copy.copy(args)
    whole.max_length, whole.shuffle_dataset = None, False
    made = inner(dataset, processing_class, whole, False, formatting_func, dataset_name)
    annotate = partial(
        _annotate,
        columns=columns,
        tokenised=tokenised,
        processing_class=processing_class,
        chat_template=trainer.chat_template,
        where=f"of the dataset `{dataset_name}`",
    )
    many = {} if not hasattr(made, "__len__") else {"num_proc": args.dataset_num_proc}
    made = made.map(annotate, with_indices=True, **many)
    keys = [column.key for column in columns]
    if packing:
        _keep_selected(made, keys)
    done = inner(made, processing_class, args, packing, formatting_func, dataset_name)
    if args.max_length is not None and not packing:
        end = {"keep_start": "end", "keep_end": "start"}[args.truncation_mode]
        done = done.map(partial(_cut, keys=keys, end=end), **many)
    lost = sorted({*keys} - {*_keys(done)})
    if lost:
        raise ConflictError([f"SFTTrainer has dropped {', '.join(lost)}: this version of TRL was not tested."])
    return done


def _keys(dataset: Any) -> list[str]:
    return keys_of(dataset) or list(next(iter(dataset)))


def _keep_selected(dataset: Any, keys: Sequence[str]) -> None:
    """Have TRL's `select_columns`, which comes before it packs, keep ours."""
    plain = dataset.select_columns
    dataset.select_columns = lambda names: plain([*names, *keys])


def _cut(example: Mapping[str, Any], keys: Sequence[str], end: str) -> dict[str, Any]:
    return {key: cut(example[key], len(example[TOKENS]), end) for key in keys}


def _annotate(
    example: Mapping[str, Any],
    index: int,
    columns: Sequence[Column],
    tokenised: bool,
    processing_class: Any,
    chat_template: str | None,
    where: str,
) -> dict[str, Numbers]:
    """Return the columns of one row, a number for each token."""
    at = f"row {index} {where}"
    render = partial(_render, example, processing_class=processing_class, chat_template=chat_template)
    found = {}
    for column in columns:
        if column.key in example:
            found[column.key] = of_row(column, example[column.key], example[LABELS], at)
        elif not tokenised and is_conversational(dict(example)):
            messages = _messages(example)
            found[column.key] = of_chat(column, example, messages, example[TOKENS], example[LABELS], render, at)
        elif column.name not in example:
            made = ("labels", "completion_mask", "assistant_masks") + (() if tokenised else (TOKENS,))
            raise missing(column, [key for key in example if key not in made], at)
        else:
            of = of_row if tokenised else of_text
            found[column.key] = of(column, example[column.name], example[LABELS], at)
    return found


def _messages(example: Mapping[str, Any]) -> list[Any]:
    messages: list[Any] = example["prompt"] + example["completion"] if "prompt" in example else example["messages"]
    return messages


def _render(example: Mapping[str, Any], count: int, processing_class: Any, chat_template: str | None) -> Sequence[int]:
    """Tokenise the first messages of a chat, as TRL tokenises all."""
    tools = example.get("tools")
    given = {
        "chat_template": chat_template,
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(example.get("chat_template_kwargs") or {}),
    }
    ids: Sequence[int] = _tokenize(processing_class, _messages(example)[:count], **given)[TOKENS]
    return ids
