"""Which code scored the rows of logits: a run that fell back from the Triton kernel looks well, and is slow."""

from __future__ import annotations

import logging
import sys

from benchmarks.gpu.sheet import Sheet


class Reasons(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints what the plugin warns of, and keeps it.

    Attributes:
        reasons: the warnings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Print and keep."""
        super().emit(record)
        if "going on without it" in record.getMessage():
            self.reasons.append(record.getMessage().removeprefix("dft: "))


def write_scorer(device: str, sheet: Sheet, reasons: list[str]) -> None:
    """Write it down, if rows were scored in this process.

    Args:
        device: `cpu` or `cuda`.
        sheet: of the part.
        reasons: why a faster code was given up, as the plugin said it.
    """
    scoring = sys.modules.get("dft_plugin.kernels.scoring")
    if scoring is None or not scoring.row_scorer.cache_info().currsize:
        return
    code = scoring.row_scorer(device).code
    why = "; ".join(reasons) or ("a CPU has no other" if device == "cpu" else "")
    sheet.keep("scored by", code)
    sheet.say("", f"Scored by: {code}{f' ({why})' if why else ''}.")
