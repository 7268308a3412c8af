"""The code blocks of README.md that say how to switch the loss on, as they stand."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "README.md"


def blocks() -> dict[str, str]:
    """Code by what stands in bold in front of it: `Axolotl`, `Your own loop` and so on."""
    hosts = PAGE.read_text(encoding="utf-8").split("<!-- hosts:begin -->")[1].split("<!-- hosts:end -->")[0]
    return dict(re.findall(r"^\*\*(.+?)\*\*.*?```\w+\n(.*?)```$", hosts, re.DOTALL | re.MULTILINE))
