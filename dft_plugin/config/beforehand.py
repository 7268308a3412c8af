"""What `dft reference` can compute for a loss before it is trained, and what it cannot. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from dft_plugin.config.plugins import Catalogue
from dft_plugin.config.schedules import made
from dft_plugin.config.settings import Settings
from dft_plugin.errors import ConflictError
from dft_plugin.objectives import REFERENCE_COLUMNS, Objective

OLD = "old_logp"
"""Log-probabilities of the model itself, before it is updated."""

COMPUTABLE = (*REFERENCE_COLUMNS, OLD)
"""The columns that a model makes of data."""


def computed(settings: Settings, catalogue: Catalogue, named: Sequence[str] = ()) -> tuple[str, ...]:
    """Say which columns to compute.

    Args:
        settings: the loss.
        catalogue: its objectives.
        named: those that the user names; none: what the loss reads. Where that is any column of a reference, it is
            both, so that data that was run once serves every loss that takes them.

    Raises:
        ConflictError: there are none, or one that nobody can compute.
    """
    unknown = [name for name in named if name not in COMPUTABLE]
    if unknown:
        raise ConflictError(
            [f"--columns {unknown[0]}: nobody knows how to compute that. Known: {', '.join(COMPUTABLE)}."]
        )
    if named:
        return tuple(dict.fromkeys(named))
    every = _objectives(settings, catalogue)
    read = frozenset[str]().union(*(one.columns for one in every))
    whole = [one.name for one in every if one.reference == "distribution"]
    found = tuple(REFERENCE_COLUMNS) if read & {*REFERENCE_COLUMNS} else ()
    found += (OLD,) if OLD in read else ()
    # One of the two losses that a run has, with `first`, keeps it from doing with columns.
    if found and not whole:
        return found
    raise ConflictError([_whole(whole[0]) if whole else _nothing(settings.name, catalogue)])


def carried(settings: Settings, catalogue: Catalogue) -> tuple[str, ...]:
    """Return the columns that the loss reads and the user's data must hold already, by name."""
    return tuple(sorted(catalogue.columns(settings) - {*COMPUTABLE}))


def trained_with(settings: Settings, columns: Sequence[str], catalogue: Catalogue) -> Settings:
    """Return the loss as it is to be written where the data holds columns that were computed."""
    read = frozenset[str]().union(*(one.columns for one in _objectives(settings, catalogue)))
    taken = read & {*columns} & {*REFERENCE_COLUMNS}
    return settings.model_copy(update={"reference": "columns"}) if taken else settings


def _objectives(settings: Settings, catalogue: Catalogue) -> list[Objective]:
    every = [made(catalogue.objectives[settings.name].item, settings.options, "to")]
    if settings.first is not None:
        every.append(catalogue.objectives[settings.first.name].item(**settings.first.options))
    return every


def _whole(name: str) -> str:
    return (
        f"the loss {name} compares with the whole distribution of its reference, as many numbers for each token as "
        "there are tokens, which no column holds, so there is nothing to compute beforehand. Its reference runs "
        "beside the training: start `dft train`, with `reference: base` (adapters; no second copy), "
        "`reference: copy`, or `reference: PATH`."
    )


def _nothing(name: str, catalogue: Catalogue) -> str:
    reading = [one for one, entry in catalogue.objectives.items() if _reads(entry.item)]
    return (
        f"the loss {name} reads nothing that is computed beforehand: start `dft train`. "
        f"Losses that do: {', '.join(reading)} (`dft losses NAME`). To prepare data for one of them, write its name "
        f"after `loss:`, or name columns: `--columns {','.join(REFERENCE_COLUMNS)}`."
    )


def _reads(kind: type[Objective]) -> bool:
    # Where an option decides, `columns` is a property.
    declared: object = kind.columns
    return kind.reference == "columns" or (isinstance(declared, frozenset) and OLD in declared)
