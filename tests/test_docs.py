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
from dft_plugin.objectives import FAMILY, Objective, Rows, Targets, Weighed
from dft_plugin.testing import check_objective

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


@pytest.mark.parametrize("kind", [Rows, Targets, Weighed], ids=lambda kind: kind.__name__)
def test_every_field_is_explained(kind):
    guide = page("docs/objectives.md")
    for name in inspect.get_annotations(kind):
        assert f"`{name}`" in guide, name


def test_everything_that_a_class_may_declare_is_explained():
    declared = [name for name, kind in inspect.get_annotations(Objective).items() if "ClassVar" in str(kind)]
    assert {"needs", "scope", "may_be_negative"} <= set(declared)
    for name in declared:
        assert re.search(rf"^\| .*`{name}`.* \|", page("docs/objectives.md"), re.M), name


def test_every_hook_is_explained():
    guide = page("docs/objectives.md")
    for name, _ in inspect.getmembers(hookspecs, inspect.isfunction):
        if name.startswith("register_"):
            assert name in guide, name


SAMPLES = {"Sqrt": "dft-sqrt", "Downweight": "dft-downweight", "SequenceMean": "dft-sequence-mean"}


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", page("docs/objectives.md"), re.S)


def body(text: str, kind: str) -> str:
    """Return what follows the docstring of a class."""
    return text.split(f"class {kind}", 1)[1].split('"""', 2)[2].strip()


@pytest.mark.parametrize("kind", SAMPLES)
def test_each_worked_example_of_the_guide_is_a_sample_plugin(kind):
    (guide,) = [block for block in blocks() if f"class {kind}(" in block]
    (sample,) = (ROOT / "tests" / "plugins" / SAMPLES[kind] / "src").glob("*.py")
    assert body(guide, kind) == body(sample.read_text(encoding="utf-8"), kind)


def test_the_first_example_is_fifteen_lines():
    lines = [line for line in blocks()[0].split('"""')[2].splitlines() if line.strip()]
    assert len(lines) < 15


def test_every_block_of_the_guide_runs_and_what_it_makes_conforms():
    # One after the other: later blocks leave out imports that stand in earlier ones.
    scope: dict = {}
    for block in blocks():
        exec(compile(block, "docs/objectives.md", "exec", dont_inherit=True), scope)
    made = [kind for kind in scope.values() if inspect.isclass(kind) and issubclass(kind, Objective)]
    made = [kind for kind in made if kind is not Objective]
    assert len(made) == sum(block.count("(Objective):") for block in blocks())
    for kind in made:
        check_objective(kind)
    scope["test_mine_conforms"]()


@pytest.mark.parametrize("name", ["docs/losses.md", "docs/settings.md", "docs/when-not-to-use.md"])
def test_every_yaml_block_is_a_loss_that_is_accepted(name):
    catalogue = build_catalogue()
    found = re.findall(r"```yaml\n(.*?)```", page(name), re.S)
    assert found or name == "docs/when-not-to-use.md"
    for block in found:
        catalogue.settings(yaml.safe_load(block)["loss"])


def test_every_loss_in_the_prose_is_accepted():
    catalogue = build_catalogue()
    names = ("README.md", "docs/losses.md", "docs/when-not-to-use.md", "docs/objectives.md")
    written = [line for name in names for line in re.findall(r"`(loss: [^`]+)`", page(name))]
    ours = [line for line in written if "sqrt" not in line and "downweight" not in line]
    assert len(ours) > 15
    for line in ours:
        catalogue.settings(yaml.safe_load(line)["loss"])


def test_the_page_of_losses_has_each_in_its_table_and_in_a_section():
    text = page("docs/losses.md")
    for kind in FAMILY:
        assert f"\n| [`{kind.name}`](#{kind.name}) |" in text
        section = text.split(f"\n## `{kind.name}`\n", 1)[1].split("\n## ", 1)[0]
        for option in kind.model_fields:
            assert f"| `{option}` |" in section
        assert kind.source in section


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
    assert found == [["axolotl"], ["llamafactory"], ["trl"], ["swift"]]


def named_tests() -> list[tuple[str, str]]:
    """Paths and names of the tests that docs/upstream.md goes by."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page("docs/upstream.md"))


def test_the_page_of_upstream_names_tests_that_exist():
    assert len(named_tests()) > 20
    for path, name in named_tests():
        assert f"\ndef {name}(" in page(path), f"{path}::{name}"


def test_each_fault_of_a_host_has_a_test():
    proven = page("docs/upstream.md").split("\n## Read, not proven")[0]
    for fault in proven.split("\n### ")[1:]:
        assert "Shown by `tests/" in fault, fault.splitlines()[0]
