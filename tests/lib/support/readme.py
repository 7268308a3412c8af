"""The code blocks of README.md that say how to switch the loss on, as they stand, and that of a loop of one's own."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "README.md"


def blocks() -> dict[str, str]:
    """Code by what stands in bold in front of it: `Axolotl`, `transformers` and so on."""
    hosts = PAGE.read_text(encoding="utf-8").split("<!-- hosts:begin -->")[1].split("<!-- hosts:end -->")[0]
    found = re.findall(r"^\*\*\[(.+?)\]\(.+?\)\*\*.*?```\w+\n(.*?)```$", hosts, re.DOTALL | re.MULTILINE)
    return dict(found)


def own_loop() -> str:
    """Return the code of docs/own-loop.md."""
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "own-loop.md").read_text(encoding="utf-8"), re.DOTALL
    )
    return code
