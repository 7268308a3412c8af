"""Columns through SFTTrainer's preparation, which tokenises, masks, truncates and packs tokens and labels alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from trl import SFTTrainer
from trl.data_utils import _tokenize, is_conversational

from dft_plugin.config import jsons
from dft_plugin.config.handover import swapped
from dft_plugin.errors import ConflictError
from dft_plugin.hf.carrying import keys_of
from dft_plugin.hf.chats import Chat, of_example
from dft_plugin.hf.columns import LABELS, TOKENS, Column, Numbers, columns_of, cut, place
from dft_plugin.plans import LossLike, plan_for

HINT = (
    "SFTTrainer prepares its data while it is made, and keeps tokens and labels alone: make it inside "
    "`with dft_trl.columns.carrying(loss): trainer = SFTTrainer(...)`, or start with `dft train`."
)

_MADE = (LABELS, "completion_mask", "assistant_masks")
"""What TRL puts beside the tokens of a row."""


def carrying(loss: LossLike) -> AbstractContextManager[None]:
    """Let each SFTTrainer that is made inside this block keep the columns that a loss reads.

    Args:
        loss: what stands after `loss:`.
    """
    return keeping(columns_of(plan_for(loss)))


@contextmanager
def keeping(columns: Sequence[Column]) -> Iterator[None]:
    """Let each SFTTrainer that is made inside this block keep columns."""
    plain: Any = SFTTrainer._prepare_dataset

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
    """Prepare a dataset as `SFTTrainer._prepare_dataset` (`inner`) does, with columns.

    TRL does it twice: first without cutting or packing, which leaves each row as it was and adds its tokens; from
    these and the columns come numbers per token; then TRL cuts and packs what is tokenised by now.

    Raises:
        ConflictError: a row lacks a column, or has a number that cannot be used.
    """
    if not columns:
        return inner(dataset, processing_class, args, packing, formatting_func, dataset_name)
    whole, keys = copy.copy(args), [column.key for column in columns]
    whole.max_length, whole.shuffle_dataset = None, False
    made = inner(dataset, processing_class, whole, False, formatting_func, dataset_name)
    many = {} if not hasattr(made, "__len__") else {"num_proc": args.dataset_num_proc}
    tokenise = partial(_tokenise, processing_class=processing_class, chat_template=trainer.chat_template)
    tokenised = TOKENS in _keys(dataset)
    annotate = partial(_annotate, columns=columns, dataset=dataset_name, tokenise=None if tokenised else tokenise)
    made = made.map(annotate, with_indices=True, **many)
    if packing:
        select = made.select_columns
        # It comes before TRL packs.
        made.select_columns = lambda names: select([*names, *keys])
    done = inner(made, processing_class, args, packing, formatting_func, dataset_name)
    if args.max_length is not None and not packing:
        end = {"keep_start": "end", "keep_end": "start"}[args.truncation_mode]
        done = done.map(partial(cut, keys=keys, end=end), **many)
    lost = sorted({*keys} - {*_keys(done)})
    if lost:
        raise ConflictError([f"SFTTrainer has dropped {', '.join(lost)}: this version of TRL was not tested."])
    return done


def _keys(dataset: Any) -> list[str]:
    return keys_of(dataset) or list(next(iter(dataset)))


def _annotate(
    example: Mapping[str, Any],
    row: int,
    columns: Sequence[Column],
    dataset: str,
    tokenise: Callable[..., Sequence[int]] | None,
) -> dict[str, Numbers]:
    """Return the columns of one row; `tokenise` is None where the user's data holds tokens."""
    chat, made = None, _MADE if tokenise is None else (TOKENS, *_MADE)
    if tokenise is not None and is_conversational(dict(example)):
        messages = example["prompt"] + example["completion"] if "prompt" in example else example["messages"]
        chat = Chat(messages, lambda count: tokenise(example, messages[:count]))
    given = {key: value for key, value in example.items() if key not in made}
    ids, labels, where = example[TOKENS], example[LABELS], place(row, dataset)
    return of_example(columns, given, ids, labels, where, chat=chat, tokenised=tokenise is None)


def _tokenise(
    example: Mapping[str, Any], messages: list[Any], processing_class: Any, chat_template: str | None
) -> Sequence[int]:
    """Tokenise some messages of a chat, as TRL tokenises all."""
    tools = example.get("tools")
    given = {"tools": jsons.parsed(tools) if isinstance(tools, str) else tools, "chat_template": chat_template}
    given |= example.get("chat_template_kwargs") or {}
    ids: Sequence[int] = _tokenize(processing_class, messages, **given)[TOKENS]
    return ids
