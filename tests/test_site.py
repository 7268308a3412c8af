"""The site: what leads out of docs/, links that lead nowhere, and pages that are true of the code."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import dft_plugin
from dft_plugin import testing
from dft_plugin.config.best import advice
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.config.reading import load

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def script(name: str):
    """Load a script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


outside, links = script("outside"), script("links")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def turned(text: str, at: str = "gpu.md", repo_url: str = "") -> str:
    here = SimpleNamespace(file=SimpleNamespace(src_uri=at))
    return outside.on_page_markdown(text, page=here, config=SimpleNamespace(repo_url=repo_url), files=None)


@pytest.mark.parametrize("text", ["[a](kernels.md#x)", "[a](#here)", "[a](https://b.org/c)", "[a](hosts/trl.md)"])
def test_a_link_inside_stays(text):
    assert turned(text) == text


def test_a_link_to_a_file_of_the_repository_leads_there_once_there_is_an_address():
    text, at = "see [`one`](../../tests/test_site.py#L3).", "hosts/trl.md"
    assert turned(text, at) == "see `one`."
    assert turned(text, at, "https://a.org/b/") == "see [`one`](https://a.org/b/blob/main/tests/test_site.py#L3)."


def test_pages_above_docs_are_pages_of_the_site():
    assert turned("[c](../CONTRIBUTING.md#adding)") == "[c](contributing.md#adding)"
    assert turned("[c](../../CHANGELOG.md)", "hosts/trl.md") == "[c](../changelog.md)"
    from_root = "[a](docs/gpu.md#x) [b](example_configs/trl/lora.yaml) [c](CHANGELOG.md)"
    assert turned(from_root, "contributing.md") == "[a](gpu.md#x) b [c](changelog.md)"


def test_every_link_out_of_docs_is_turned():
    for path in DOCS.rglob("*.md"):
        text = turned(path.read_text(encoding="utf-8"), str(path.relative_to(DOCS)))
        for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text):
            there = (path.parent / target).resolve()
            assert there.is_relative_to(DOCS), (path, target)
            assert there.exists() or there.name in outside.PAGES.values(), (path, target)


def test_what_leads_nowhere_is_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text('<a href="sub/a.html#there">x</a><a href="sub/#no">x</a><img src="none.png">')
    (tmp_path / "sub" / "a.html").write_text('<h1 id="there"></h1><a href="../index.html"></a><a href="#gone"></a>')
    (tmp_path / "sub" / "index.html").write_text('<a href="https://a.org"></a><a href="/x"></a><a href="a.html"></a>')
    found = ["index.html: sub/#no", "index.html: none.png", "sub/a.html: #gone"]
    assert links.broken(tmp_path) == found
    assert links.main(str(tmp_path)) == 1
    assert links.main(str(tmp_path / "nothing")) == 1


def test_the_python_reference_has_every_public_name_and_no_other():
    named = re.findall(r"^::: dft_plugin\.(\S+)$", page("api.md"), re.M)
    assert sorted(named) == sorted(
        {*dft_plugin.__all__, *(f"testing.{one}" for one in testing.__all__)} - {"__version__"}
    )


def blocks(name: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page(name), re.S)


def test_each_loss_among_the_questions_is_accepted():
    catalogue, found = build_catalogue(), [yaml.safe_load(block) for block in blocks("faq.md", "yaml")]
    losses = [one["loss"] for one in found if "loss" in one]
    assert len(losses) == 6
    for loss in losses:
        catalogue.settings(loss)


def test_the_loss_that_the_first_run_advises_is_accepted():
    (advised,) = re.findall(r"`(loss: \{.*?\}\})`", page("first-run.md"))
    build_catalogue().settings(yaml.safe_load(advised)["loss"])


def test_the_checkpoint_among_the_questions_is_chosen_by_a_statistic_in_its_direction():
    (found,) = [one for block in blocks("faq.md", "yaml") if "loss" not in (one := yaml.safe_load(block))]
    metric, asked = found["metric_for_best_model"], found["greater_is_better"]
    assert advice(metric, asked, weighted=True)[0] == []
    assert advice(metric, not asked, weighted=True)[0] != []


def test_what_is_written_into_llamaboard_is_a_config_with_our_loss():
    (extra,) = [json.loads(block) for block in blocks("faq.md", "json")]
    # What LlamaBoard writes into its config by itself, as far as a host is known by it.
    config = {"stage": "sft", "do_train": True, "model_name_or_path": "m", "dataset": "d", "template": "qwen", **extra}
    catalogue = build_catalogue()
    catalogue.settings(config.pop("loss"))
    assert [name for name, entry in catalogue.hosts.items() if entry.item.recognise(config)] == ["llamafactory"]


def test_the_runs_to_compare_differ_by_their_loss_alone(tmp_path):
    (loop,) = [block for block in blocks("compare-honestly.md", "") if "dft train" in block]
    path = tmp_path / "sft.yaml"
    path.write_text("loss: {name: dft, alpha: 0.5}\nlearning_rate: 1.0e-4\n")
    found = []
    for line in re.findall(r"dft train sft.yaml (.*)", loop):
        words = [word.replace("$seed", "1").strip("'") for word in re.findall(r"'[^']*'|\S+", line)]
        found.append(words)
    configs = [load(path, words) for words in found]
    settings = [build_catalogue().settings(config.loss) for config in configs]
    assert [one.name for one in settings] == ["nll", "dft"]
    assert all(one.log == ("top1",) for one in settings)
    assert [words[1] for words in found] == ["seed=1", "seed=1"]


def test_the_numbers_of_two_ways_to_answer_are_right():
    rows = re.findall(r"([\d.]+), ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\d+)%", page("compare-honestly.md"))
    assert len(rows) == 2
    for first, second, nll, mean, top1 in (map(float, row) for row in rows):
        assert first + second == pytest.approx(1)
        assert -(0.6 * math.log(first) + 0.4 * math.log(second)) == pytest.approx(nll, abs=5e-4)
        assert 0.6 * first + 0.4 * second == pytest.approx(mean, abs=5e-4)
        assert top1 == 60
    assert "temperature 0.14 *is*" in page("compare-honestly.md")
    colder = [share ** (1 / 0.14) for share in (0.6, 0.4)]
    assert colder[0] / sum(colder) == pytest.approx(0.95, abs=5e-3)
