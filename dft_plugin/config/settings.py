"""Settings: what the user wrote after `loss:`, checked as a whole. No torch.

The keys are `name`, `kernel`, `scratch_mb` and the options of the objective that is named.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dft_plugin.errors import SettingsError
from dft_plugin.objectives import Objective

RESERVED_KERNELS = ("auto", "logits")
"""Values of `kernel` that name a choice rather than a kernel."""


class Settings(BaseModel):
    """One `loss:` entry. Frozen; made by `parse_settings`, which knows what may be named."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(description="The objective: `dft`, `nll`, or one that a plugin registers.")
    kernel: str = Field(
        default="auto",
        description=(
            "How the loss is computed. `auto`: from the hidden states, so that the logits of a batch never exist; "
            "where the model does more to its logits than to scale and cap them, from those, and it says so. "
            "`logits`: always from the logits that the model makes. A kernel's name (`chunked`, `reference`, or one "
            "that a plugin registers) insists on the hidden states: where that cannot be, the run is refused. A head "
            "that cannot be read (DoRA, 4-bit, one with hooks) is called on chunks of tokens, whichever is named."
        ),
    )
    scratch_mb: int | None = Field(
        default=None,
        ge=1,
        description=(
            "MiB for the logits that exist at one time where the loss is computed from the hidden states. Unset, on a "
            "CPU: 40 where the head's weight is frozen, 300 where it is trained; on an accelerator: at most 512 and "
            "2048, by the shape, and a quarter of the memory that is free. At least 64 tokens and at most 1024 (on an "
            "accelerator 256 and 4096) fit into a chunk, whatever this says. `blocked` needs no more than 40 and does "
            "not heed it."
        ),
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the objective, written beside `name`."
    )

    def as_written(self) -> dict[str, Any]:
        """Return the mapping that `parse_settings` reads as these settings, e.g. to hand them to another process."""
        return {**self.model_dump(exclude={"options"}), **self.options}

    def describe(self) -> str:
        """Return `dft` or `dft(alpha=0.7)`, for logs."""
        inner = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({inner})" if inner else self.name


def parse_settings(
    value: Any,
    *,
    objectives: Mapping[str, type[Objective]],
    kernels: Collection[str],
    where: str = "loss",
) -> Settings:
    """Turn what stands after `loss:` into Settings.

    Args:
        value: a name, or a mapping with `name` (default `dft`) and options.
        objectives: what may be named, each with its options.
        kernels: what `kernel` may name beside `auto` and `logits`.
        where: the key, for error messages.

    Raises:
        SettingsError: with every problem: unknown names and keys with the closest valid one, wrong
            types, impossible values.
    """
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise SettingsError(
            [f"`{where}: {value!r}` is a {type(value).__name__}; write `{where}: dft`, or a mapping with `name`."]
        )
    given = {"name": "dft", **{str(key): entry for key, entry in value.items()}}
    own = {key: entry for key, entry in given.items() if key in _OWN_KEYS}
    options = {key: entry for key, entry in given.items() if key not in _OWN_KEYS}
    problems = _problems(Settings, own, where)

    kernel = own.get("kernel", "auto")
    if isinstance(kernel, str):
        problems += _unknown(f"{where}.kernel", kernel, [*RESERVED_KERNELS, *kernels])
    name = own["name"]
    objective = objectives.get(name) if isinstance(name, str) else None
    if objective is None:
        if isinstance(name, str):
            problems += _unknown(f"{where}.name" if len(given) > 1 else where, name, objectives)
    else:
        allowed = [*objective.model_fields, *_OWN_KEYS]
        for key in [key for key in options if key not in objective.model_fields]:
            problems += _unknown(f"{where}.{key}", key, allowed, what=f"an option of `{name}`")
            del options[key]
        problems += _problems(objective, options, where)
    if problems:
        raise SettingsError(problems)
    return Settings(**own, options=options)


_OWN_KEYS = tuple(key for key in Settings.model_fields if key != "options")


def _problems(model: type[BaseModel], values: Mapping[str, Any], where: str) -> list[str]:
    try:
        model.model_validate(dict(values))
    except ValidationError as error:
        return [
            f"`{'.'.join([where, *map(str, item['loc'])])}: {item['input']!r}`: "
            f"{item['msg'].removeprefix('Value error, ')}."
            for item in error.errors()
        ]
    return []


def _unknown(key: str, given: str, allowed: Collection[str], what: str = "a known name") -> list[str]:
    """Return a problem if `given` is not in `allowed`."""
    if given in allowed:
        return []
    close = difflib.get_close_matches(given, allowed, n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    return [f"`{key}`: `{given}` is not {what}.{hint} Allowed: {', '.join(allowed)}."]
