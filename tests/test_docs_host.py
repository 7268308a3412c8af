"""The guide "write a host" is true of the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from dft_plugin.config import rules
from dft_plugin.config.hosts import Host
from dft_plugin.hf import chats, columns, passports
from dft_plugin.hf.trainer import TrainerHook

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "tests" / "plugins" / "dft-minimal" / "src" / "dft_minimal"
GUIDE = (ROOT / "docs" / "write-a-host.md").read_text(encoding="utf-8")


def explained(name: str) -> bool:
    return re.search(rf"^\| .*`{name}`.* \|", GUIDE, re.M) is not None


@pytest.mark.parametrize("name", [path.name for path in sorted(SAMPLE.glob("*.py")) if path.name != "__init__.py"])
def test_each_file_of_the_sample_is_in_the_guide_as_it_is(name):
    assert f"```python\n{(SAMPLE / name).read_text(encoding='utf-8')}```" in GUIDE


def test_everything_that_a_host_may_say_is_explained():
    public = [name for name in {**vars(Host), **inspect.get_annotations(Host)} if not name.startswith("_")]
    assert {"rules", "launch_function", "recognise", "reading"} <= set(public)
    assert [name for name in public if not explained(name)] == []


def test_what_is_named_is_there():
    for name in re.findall(r"^\| `(\w+)`", GUIDE.split("## A trainer that does more")[1], re.M):
        assert hasattr(TrainerHook, name), name
    section = GUIDE.split("## Columns of the data")[1].split("\n## ")[0]
    for line in re.findall(r"^\| (.*) \|.*\|$", section, re.M)[1:]:
        for name in re.findall(r"`(\w+)`", line):
            assert any(hasattr(module, name) for module in (columns, chats, passports)), name
    for name in re.findall(r"`(is_\w+|above_one|equals|other_than)`", GUIDE.split("## What is in the way")[1]):
        assert hasattr(rules, name) or hasattr(Host, name), name
