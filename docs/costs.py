"""The generated part of gpu.md: the cost model's tables, between two marks; around them a person writes."""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).parent / "gpu.md"
BEGIN, END = "<!-- predicted: begin -->", "<!-- predicted: end -->"
TOKENS = 8192


def page() -> str:
    """Return the page as it is, with the tables made anew."""
    sys.path.insert(0, str(PAGE.parents[1]))
    from benchmarks import cost

    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN, 1)
    seven = next(head for head in cost.HEADS if head.name == "Qwen2.5 7B")
    lines = [
        BEGIN,
        f"{TOKENS:,} scored tokens, half precision, on one {cost.DEVICES[0].name}:",
        "",
        *cost.table_of_heads(cost.DEVICES[0], TOKENS),
        "",
        f"{seven.name} on other cards:",
        "",
        *cost.table_of_devices(seven, TOKENS),
        "",
        "The cards, by their vendors' data sheets, without sparsity:",
        "",
        "| | TFLOP/s | GB/s | GB | multiprocessors | source |",
        "|" + " --- |" * 6,
        *(
            f"| {card.name} | {card.tflops:g} | {card.gb_per_s:g} | {card.gb} | {card.processors} | {card.source} |"
            for card in cost.DEVICES
        ),
        END,
    ]
    return before + "\n".join(lines) + rest.split(END, 1)[1]
