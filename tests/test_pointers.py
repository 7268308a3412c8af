"""What is said to a user points to nothing that an installed package does not have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = [path for root in ("dft_plugin", "integrations") for path in sorted((ROOT / root).rglob("*.py"))]

ELSEWHERE = re.compile(r"\b(docs|tests|example_configs|benchmarks|shared)/|\.md\b|https?://|\bREADME\b")
"""Folders and pages of the repository, of which a wheel has none; addresses, of which the project has none."""


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield every text that may be shown: all but what modules say of themselves, to who reads their source."""
    first = tree.body[0] if isinstance(tree, ast.Module) and tree.body else None
    own = first.value if isinstance(first, ast.Expr) else None
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node is not own:
            yield node.lineno, node.value


def test_there_is_what_is_looked_through():
    names = {path.relative_to(ROOT).parts[0] for path in SHIPPED}
    assert names == {"dft_plugin", "integrations"}
    assert len(SHIPPED) > 100


@pytest.mark.parametrize("said", ["See docs/x.", "look at objectives.md", "https://x.org", "tests/lib", "the README"])
def test_what_leads_elsewhere_is_seen(said):
    (found,) = texts(ast.parse(f'"""Module: docs/x.md."""\nraise ValueError("{said}")'))
    assert ELSEWHERE.search(found[1])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_leads_to_a_page_that_is_not_installed(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [(line, text) for line, text in texts(tree) if ELSEWHERE.search(text)] == []
