"""`loss: sqrt`: w = sqrt(p), between SFT and DFT."""

from typing import ClassVar

from pydantic import Field

from dft_plugin import Number, Objective, hookimpl


class Sqrt(Objective):
    """w = scale * sqrt(p), as proposed in a comment on the DFT repository, issue 1."""

    name: ClassVar[str] = "sqrt"
    summary: ClassVar[str] = "w = scale * sqrt(p)"
    source: ClassVar[str] = "github.com/yongliang-wu/DFT, issue 1"

    scale: Number = Field(1.0, gt=0, description="Factor on every weight.")

    def weight(self, rows):
        return self.scale * (0.5 * rows.logp_T).exp()


@hookimpl
def register_objectives():
    return [Sqrt]
