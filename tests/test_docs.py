"""The documentation is true of the code."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import dft_plugin
from dft_plugin.config import hookspecs
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.core.stats import LossStats, Sum
from dft_plugin.objectives import Rows

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_generated_pages_are_up_to_date():
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_logged_key_is_explained_in_the_readme():
    import torch

    readme = page("README.md")
    sums = torch.ones(len(Sum), dtype=torch.float64)
    for key in LossStats(sums).as_logs():
        if key not in ("dft/loss", "dft/tokens"):
            assert f"`{key}`" in readme, key
    assert "`dft/tokens`" in readme


def test_every_field_of_rows_is_explained():
    guide = page("docs/objectives.md")
    for name in inspect.get_annotations(Rows):
        assert f"`{name}`" in guide, name


def test_every_hook_is_explained():
    guide = page("docs/objectives.md")
    for name, _ in inspect.getmembers(hookspecs, inspect.isfunction):
        if name.startswith("register_"):
            assert name in guide, name


def test_the_objective_in_the_guide_is_the_sample_plugin():
    guide = re.search(r"```python\n(.*?)```", page("docs/objectives.md"), re.S)
    sample = page("tests/plugins/dft-sqrt/src/dft_sqrt.py")
    body = guide.group(1).split("class Sqrt", 1)[1].split('"""', 2)[2]
    assert body.strip() == sample.split("class Sqrt", 1)[1].split('"""', 2)[2].strip()


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in PAGES])
def test_relative_links_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page(name)):
        assert ((ROOT / name).parent / target).exists(), target


def test_the_two_commands_stand_in_the_readme_and_in_the_makefile():
    for command in ("demo", "test"):
        assert f"make {command}" in page("README.md")
        assert f"\n{command}:" in page("Makefile")


def test_the_version_is_the_same_in_both_places():
    assert f'\nversion = "{dft_plugin.__version__}"\n' in page("pyproject.toml")


def test_each_eight_lines_of_the_readme_are_a_config_of_one_host_with_our_line():
    blocks = re.findall(r"```yaml\n(.*?)```", page("README.md"), re.DOTALL)
    catalogue = build_catalogue()
    found = []
    for text in blocks:
        assert len(text.splitlines()) == 8
        config = yaml.safe_load(text)
        catalogue.settings(config.pop("loss"))
        found.append([name for name, entry in catalogue.hosts.items() if entry.item.recognise(config)])
        assert catalogue.hosts[found[-1][0]].item.conflicts(config) == []
    assert found == [["axolotl"], ["llamafactory"], ["trl"]]
