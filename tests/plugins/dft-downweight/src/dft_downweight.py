"""`loss: {name: downweight, ids: [...]}`: DFT that learns some tokens less."""

from typing import ClassVar

from pydantic import Field

from dft_plugin import Number, Objective, hookimpl


class Downweight(Objective):
    """w = p, times a factor for some tokens: boilerplate, say, of which the data is full."""

    name: ClassVar[str] = "downweight"
    summary: ClassVar[str] = "w = p, times factor for the tokens in ids"
    source: ClassVar[str] = "an example of dft-plugin's guide"

    ids: tuple[int, ...] = Field((), description="Ids of the tokens that are learned less.")
    factor: Number = Field(0.1, ge=0, description="What their weight is multiplied by.")

    def weigh(self, rows, targets, clock):
        weight_T = rows.logp_T.exp()
        for token_id in self.ids:
            weight_T = weight_T.where(targets.ids_T != token_id, self.factor * weight_T)
        return weight_T


@hookimpl
def register_objectives():
    return [Downweight]
