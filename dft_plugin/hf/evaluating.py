"""One evaluation by a trainer that a host has made, with a loss on it: nothing is trained, saved or reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from transformers import PrinterCallback, ProgressCallback
from transformers.integrations import integration_utils

from dft_plugin.config import record as records
from dft_plugin.config.record import Record
from dft_plugin.config.trained import Trained
from dft_plugin.errors import ConflictError
from dft_plugin.hf import resuming
from dft_plugin.hf.activation import activate
from dft_plugin.hf.probing import require_whole
from dft_plugin.hf.trained_adapter import put_adapter
from dft_plugin.hf.wrapping import wrapper_of
from dft_plugin.plans import LossLike

COMMAND = "dft evaluate"

_SPEED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


@dataclass(frozen=True)
class Evaluation:
    """What came of it.

    Attributes:
        loss: in words.
        sets: for each set of evaluation data (`eval` where there is one) its numbers, `loss` and `dft/*` first.
        notes: what to know of the weights beside them.
        rows: of each set, as many as are known.
    """

    loss: str
    sets: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]
    rows: Mapping[str, int]


def evaluate(trainer: Any, loss: LossLike, trained: Trained | None, named: str) -> Evaluation:
    """Have a trainer evaluate its model, or an adapter in it, with a loss.

    Args:
        trainer: a `transformers.Trainer` as it is when training begins; it is not to be used afterwards.
        loss: what stands after `loss:`.
        trained: whose weights the model has; an adapter is put into it here. None: those that the config names.
        named: how the config names data to evaluate on, for messages.

    Raises:
        ConflictError: there is nothing to evaluate on, no target in it, several processes, a sharded model, weights
            that do not belong to the model, or a loss that cannot be known of them.
    """
    require_whole(trainer, COMMAND)
    if not _has_rows(trainer.eval_dataset):
        raise ConflictError([f"the config names no data to evaluate on. Add {named}."])
    # More devices would hold replicas, which do not carry the loss.
    trainer.args._n_gpu = min(trainer.args.n_gpu, 1)
    notes = [] if trained is None or not trained.is_adapter else put_adapter(trainer.model, trained)
    attached = activate(trainer, loss)
    if trained is not None:
        _require_known(attached, trained)
        notes += _said(trained, wrapper_of(trainer).recorder.record, resuming.defaults(attached.plan))
        _put_clock(trainer.state, trained)
    silence(trainer)
    sets = by_set(trainer.evaluate())
    if not sets:
        raise ConflictError(
            [
                "the evaluation data has no target: every label is -100. Look at the chat template, at what is "
                "masked, and at the length at which rows are cut."
            ]
        )
    return Evaluation(attached.plan.describe(), sets, tuple(notes), _rows(trainer.eval_dataset))


def _rows(data: Any) -> dict[str, int]:
    """Return how many rows the sets of a trainer's evaluation data have, by the prefix of their metrics."""
    every = {f"eval_{name}": one for name, one in data.items()} if isinstance(data, Mapping) else {"eval": data}
    return {prefix: len(one) for prefix, one in every.items() if isinstance(one, Sized)}


def _has_rows(data: Any) -> bool:
    try:
        return data is not None and len(data) > 0
    except TypeError:
        # A stream does not know.
        return True


def _require_known(attached: Any, trained: Trained) -> None:
    """Refuse what the loss would need to know of the run, and no checkpoint holds."""
    plan = attached.plan
    if attached.reference is not None and attached.reference.word in ("start", "copy"):
        raise ConflictError(
            [
                f"`reference: {attached.reference.word}` is the model as it was when training began, and "
                f"--checkpoint {trained.folder} is what became of it. Name that model by `reference: PATH`, or by "
                "`reference: base` if adapters were trained on it."
            ]
        )
    if plan.schedule is not None and trained.step is None:
        raise ConflictError(
            [
                f"the loss changes during the run ({plan.describe()}), and nothing in {trained.folder} says after "
                "which step it was saved. Give the loss as it was then, `loss=...`, without a schedule."
            ]
        )


def _said(trained: Trained, now: Record, defaults: Mapping[str, Any]) -> list[str]:
    """Say whether the weights were trained with the loss that they are evaluated with."""
    if trained.problem is not None:
        return [f"{trained.problem}: nobody can say with which loss {trained.folder} was trained"]
    then = trained.record
    if then is None:
        return [
            f"{trained.folder} has no record of its loss ({records.FILE}): trained without dft-plugin, or elsewhere"
        ]
    found = "; ".join(map(str, records.differences(then, now, defaults)))
    if not found:
        return []
    return [
        f"{trained.folder} was trained with {then.get('in_words')}, and is evaluated with {now['in_words']}: {found}"
    ]


def _put_clock(state: Any, trained: Trained) -> None:
    """Have a trainer believe itself where the weights were saved: what changes during a run stands as it did then."""
    state.global_step = trained.step or 0
    state.max_steps = trained.last_step or 0
    state.epoch = trained.epoch


def silence(trainer: Any) -> None:
    """Take away what tells others of a run, or prints its log: an evaluation on the side is no part of any.

    A host's own bars may need a training that has begun; that of transformers does not.
    """
    trackers = tuple(integration_utils.INTEGRATION_TO_CALLBACK.values())
    handler = trainer.callback_handler
    said = (*trackers, PrinterCallback, ProgressCallback)
    handler.callbacks = [one for one in handler.callbacks if not isinstance(one, said)]
    if not trainer.args.disable_tqdm:
        handler.add_callback(ProgressCallback())


def by_set(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the metrics of each set of data, by its prefix; what only says how fast it was is left out."""
    mark = "_dft/loss"
    prefixes = [key.removesuffix(mark) for key in metrics if key.endswith(mark)]
    # The one of a set may begin as that of another does.
    owner = {key: _longest(key, prefixes) for key in metrics}
    found: dict[str, dict[str, float]] = {}
    for prefix in prefixes:
        own = {key[len(prefix) + 1 :]: value for key, value in metrics.items() if owner[key] == prefix}
        first = sorted(own, key=lambda key: (key != "loss", not key.startswith("dft/")))
        found[prefix] = {key: float(own[key]) for key in first if key not in _SPEED and _is_number(own[key])}
    return found


def _longest(key: str, prefixes: Sequence[str]) -> str | None:
    return max((one for one in prefixes if key.startswith(f"{one}_")), key=len, default=None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
