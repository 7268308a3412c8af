"""The key `loss` in Axolotl's schema. Axolotl merges this class into its own, from 0.21 in every run: it is light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, field_validator, model_validator


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
        if data.get("loss") is None and "dft_axolotl" not in str(data.get("plugins")):
            return data
        from dft_axolotl.host import problems_of
        from dft_plugin.errors import SettingsError

        problems = problems_of(data)
        if problems:
            raise SettingsError(problems)
        return data

    @field_validator("loss")
    @classmethod
    def write_in_pairs(cls, loss: Any) -> Any:
        """Keep ids apart from texts: Axolotl writes its config as JSON with sorted keys, which cannot hold both."""
        weights = loss.get("weights") if isinstance(loss, Mapping) else None
        if not isinstance(weights, Mapping) or not isinstance(weights.get("tokens"), Mapping):
            return loss
        pairs = [list(pair) for pair in weights["tokens"].items()]
        return {**loss, "weights": {**weights, "tokens": pairs}}
