"""JSON that others wrote: each way in which it cannot be read is an error that callers know."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest

from dft_plugin.config import jsons

ROOT = Path(__file__).parents[1]
OWN = {"dft_plugin/config/jsons.py", "dft_plugin/config/files.py", "dft_plugin/config/handover.py"}
"""Who reads JSON by itself: this one, who says more of a config, and what a process of ours wrote for another."""


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 100_000, "1" * 5000, "NaN,"], ids=len)
def test_what_is_none_is_said_in_one_way(text):
    with pytest.raises(json.JSONDecodeError):
        jsons.parsed(text)


def test_a_file_is_read_with_the_mark_of_an_editor(tmp_path):
    (tmp_path / "a.json").write_text("[1]", encoding="utf-8-sig")
    assert jsons.read(tmp_path / "a.json") == [1]


def test_what_is_no_text_of_a_file_is_an_error_of_the_system(tmp_path):
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(jsons.LIMIT + 1)
    os.mkfifo(tmp_path / "pipe")
    for odd, said in ((large, "GiB, and at most 1 is read"), (tmp_path / "pipe", "no file"), (tmp_path, "no file")):
        with pytest.raises(OSError, match=said):
            jsons.read(odd)
    with pytest.raises(FileNotFoundError):
        jsons.read(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    with pytest.raises(UnicodeDecodeError):
        jsons.read(tmp_path / "latin.json")


def test_nobody_else_reads_json_of_others():
    """`json.loads` raises RecursionError, too, which nobody expects."""
    found = []
    for path in sorted([*(ROOT / "dft_plugin").rglob("*.py"), *(ROOT / "integrations").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.loads", "json.load")
            # A value of ours, written a moment ago.
            own = called and ast.unparse(node.args[0]).startswith("json.dumps(")
            if called and not own and path.relative_to(ROOT).as_posix() not in OWN:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
