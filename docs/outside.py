"""What the site does with links out of docs/, which lead to files of the repository in a checkout.

A page of PAGES becomes a page of the site, under its new name. A link to anything else leads to `repo_url` of
mkdocs.yml; as long as that is not set, its text stays, without a link.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
LINK = re.compile(r"(?<!!)\[([^\[\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand above docs/."""
    from mkdocs.structure.files import File

    for name, here in PAGES.items():
        files.append(File.generated(config, here, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn the links of a page to where they lead on the site."""
    here = Path("docs", page.file.src_uri).parent
    written = Path() if page.file.src_uri in PAGES.values() else here

    def turn(link: re.Match[str]) -> str:
        text, anchor = link[1], link[3] or ""
        path = os.path.normpath(written / link[2])
        path = f"docs/{PAGES[path]}" if path in PAGES else path
        if path.startswith("docs/"):
            return f"[{text}]({os.path.relpath(path, here)}{anchor})"
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})" if config.repo_url else text

    return LINK.sub(turn, markdown)
