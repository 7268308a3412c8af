"""Follow every link inside a built site, anchors too, those of the generated reference as well.

python docs/links.py FOLDER
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and what may be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element's id, and what it leads to."""
        found = dict(attrs)
        self.anchors.update(value for key in ("id", "name") if (value := found.get(key)))
        self.targets += [value for key in ("href", "src") if (value := found.get(key))]


def broken(site: Path) -> list[str]:
    """Return a line for each link of the site that leads nowhere in it."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    lines = []
    for path, page in pages.items():
        for target in page.targets:
            address = urlsplit(target)
            # The page of an error is shown under any address, so its links start at the root.
            if address.scheme or address.netloc or address.path.startswith("/"):
                continue
            there = (path.parent / unquote(address.path)).resolve() if address.path else path
            there = there / "index.html" if there.is_dir() else there
            known = pages[there].anchors if there in pages else {"", unquote(address.fragment)}
            if not there.exists() or unquote(address.fragment) not in known:
                lines.append(f"{path.relative_to(site.resolve())}: {target}")
    return lines


def main(site: str) -> int:
    """Print what leads nowhere; return 1 where something does, or where there is no site."""
    found = broken(Path(site))
    for line in found:
        print(f"leads nowhere: {line}")
    return 1 if found or not (Path(site) / "index.html").exists() else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
