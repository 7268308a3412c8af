"""The key `loss` in Axolotl's schema. Axolotl merges this class into its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, model_validator

from dft_axolotl.conflicts import PLUGIN, conflicts, lists_plugin
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import SettingsError


class DFTArgs(BaseModel):
    """Input arguments of the plugin."""

    loss: str | dict[str, Any] | None = Field(
        default=None,
        json_schema_extra={
            "description": "The training loss: `dft`, `nll` or another that `dft losses` lists; or a mapping "
            "with `name` and the loss's options, e.g. `{name: dft, alpha: 0.7}`."
        },
    )

    @model_validator(mode="before")
    @classmethod
    def check_loss(cls, data: Any) -> Any:
        """Report everything that is wrong with `loss:` or in its way, at once."""
        problems = problems_of(data)
        if problems:
            raise SettingsError(problems)
        return data


def problems_of(config: Mapping[str, Any]) -> list[str]:
    """List what is wrong with `loss:` in a config, and what in the config is in its way."""
    loss = config.get("loss")
    if loss is None:
        if lists_plugin(config):
            return [
                f"`plugins` lists {PLUGIN}, but there is no `loss:`. Add the line `loss: dft`, or remove the plugin."
            ]
        return []
    problems: list[str] = []
    try:
        build_catalogue().settings(loss)
    except SettingsError as error:
        problems += error.problems
    return problems + [str(conflict) for conflict in conflicts(config)]
