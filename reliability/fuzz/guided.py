"""Cases that coverage leads to: atheris (libFuzzer) writes bytes, and keeps those that reach code not reached before.

`python -m reliability.fuzz.guided TARGET SEED CASES ROWS CORPUS`, a process for each batch, since libFuzzer ends its
process. The bytes are a file's content for `texts`, and elsewhere what hypothesis draws its choices from.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

FOLLOWED = ["dft_plugin.config", "dft_plugin.objectives", "dft_plugin.core", "dft_plugin.plans", "yaml", "json"]
"""Packages whose branches are counted."""


def main() -> None:
    """Run a batch, and append its row."""
    import atheris

    with atheris.instrument_imports(include=FOLLOWED):
        import dft_plugin.config.parsing
        import dft_plugin.config.reading
        import dft_plugin.functional
        import dft_plugin.plans  # noqa: F401
    from reliability.fuzz.run import Counting, drawn, limit_memory
    from reliability.fuzz.texts import SUFFIXES, Text

    name, seed, cases, rows, corpus = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    counting = Counting(name, "atheris", seed)
    limit_memory()

    def finish() -> None:
        with Path(rows).open("a", encoding="utf-8") as file:
            file.write(json.dumps(counting.done().as_dict()) + "\n")
        os._exit(0)

    def of_bytes(data: bytes) -> None:
        suffix = SUFFIXES[data[0] % len(SUFFIXES)] if data else ""
        counting(Text(data[1:], suffix))
        if counting.row.cases >= cases:
            finish()

    drawing: Any = drawn(counting.target, counting, 1, None, shrink=False).hypothesis.fuzz_one_input

    def of_choices(data: bytes) -> None:
        drawing(data)
        if counting.row.cases >= cases:
            finish()

    arguments = [
        sys.argv[0],
        f"-seed={seed + 1}",
        f"-max_len={200 if name == 'texts' else 1000}",
        "-timeout=120",
        "-len_control=0",
        corpus,
    ]
    atheris.Setup(arguments, of_bytes if name == "texts" else of_choices)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
