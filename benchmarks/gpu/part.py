"""One part, in a process of its own: a CUDA error or a lack of memory ends it, and no other.

python -m benchmarks.gpu.part <name> <options as JSON>
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from benchmarks.gpu.scorer import Reasons, write_scorer
from benchmarks.gpu.sheet import Options, Sheet


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Attributes:
        title: its heading.
        run: `module:function` below `benchmarks.gpu`, imported in the process of the part only.
        minutes: at most, from the start of its process.
        arguments: for the function, behind options and sheet.
    """

    title: str
    run: str
    minutes: float
    arguments: tuple[str, ...] = ()

    def load(self) -> Callable[..., None]:
        """Import what does the work."""
        module, function = self.run.split(":")
        loaded: Callable[..., None] = getattr(import_module(f"benchmarks.gpu.{module}"), function)
        return loaded


PARTS = {
    "machine": Part("The machine", "ceilings:describe", 1.0),
    "exact": Part("Numbers against float64", "exact:compare", 1.5),
    "tests": Part("Tests marked `gpu`", "suite:run", 2.5),
    "frozen": Part("Frozen head, bfloat16", "table:measure", 2.5, ("frozen",)),
    "trained": Part("Trained head, bfloat16", "table:measure", 2.0, ("trained",)),
    "waits": Part("Waits and launches of a training step", "waits:count", 1.0),
    "budget": Part("Time by the rows of a chunk", "table:sweep", 1.0),
    "lora": Part("A step in TRL: LoRA", "in_trl:steps", 2.0, ("lora",)),
    "qlora": Part("A step in TRL: QLoRA", "in_trl:steps", 2.0, ("qlora",)),
    "logits": Part("Logits that exist, bfloat16", "table:measure", 1.0, ("logits",)),
    "narrow": Part("Trained head, the width of a 0.5B model", "table:measure", 1.0, ("narrow",)),
    "eval": Part("Evaluation, bfloat16", "table:measure", 0.5, ("eval",)),
    "cost": Part("The cost model beside the measurement", "predicted:compare", 0.5),
}
"""By name, in the order in which they run: what is wanted most comes first; the last compares, and needs no device."""


def main() -> None:
    """Run the part that is named."""
    name, options = sys.argv[1], Options(**json.loads(sys.argv[2]))
    part, sheet, said = PARTS[name], Sheet(options.sheet(name)), Reasons()
    logging.getLogger("dft_plugin").addHandler(said)
    try:
        part.load()(options, sheet, *part.arguments)
    finally:
        write_scorer(options.device, sheet, said.reasons)


if __name__ == "__main__":
    main()
