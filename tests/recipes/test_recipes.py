"""Recipes: the numbers that follow from the paper, in every host's words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recipes import evaluation, page
from recipes.hosts import WRITERS, text_of
from recipes.paper import BENCHMARKS, FAULTS, MATH_RESULTS, SETTINGS, names
from recipes.recipe import RecipeError, make

ROOT = Path(__file__).parents[2]

KEYS = {
    "trl": (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "max_grad_norm",
        "max_length",
    ),
    "axolotl": ("micro_batch_size", "gradient_accumulation_steps", "learning_rate", "max_grad_norm", "sequence_len"),
    "swift": (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "max_grad_norm",
        "max_length",
    ),
}
OF_PRECISION = {
    *("accelerate_config", "deepspeed", "fsdp", "fsdp_config", "fsdp_version", "engine"),
    *("dtype", "torch_dtype", "bf16", "fp16", "pure_bf16"),
}
KEYS["llamafactory"] = (*KEYS["trl"][:4], "cutoff_len")


def keys(host, recipe):
    return yaml.safe_load(text_of(host, recipe, Path("run.yaml")))


def numbers(host, recipe):
    """Micro-batch, accumulation, rate, clipping and length of a written file."""
    given = keys(host, recipe)
    if host == "verl":
        data, optim = given["data"], given["optim"]
        steps = data["train_batch_size"] // (data["micro_batch_size_per_gpu"] * given["trainer"]["n_gpus_per_node"])
        return data["micro_batch_size_per_gpu"], steps, optim["lr"], optim["clip_grad"], data["max_length"]
    return tuple(given[key] for key in KEYS[host])


@pytest.mark.parametrize("host", WRITERS)
class TestNumbers:
    @pytest.mark.parametrize("lora", [False, True])
    def test_those_of_the_paper(self, host, lora):
        """arXiv 2508.05629, section 4.1."""
        assert numbers(host, make("qwen2.5-math-1.5b", lora=lora)) == (4, 8, 5e-5, 1.0, 2048)
        assert numbers(host, make("llama-3.1-8b", lora=lora)) == (4, 8, 2e-5, 1.0, 2048)

    @pytest.mark.parametrize("gpus", [1, 2, 16, 32])
    def test_a_step_has_as_many_sequences_on_any_number_of_gpus(self, host, gpus):
        micro, accumulation, *_ = numbers(host, make("qwen2.5-math-7b", gpus=gpus))
        assert micro * accumulation * gpus == 256

    def test_those_of_the_code_setting(self, host):
        micro, accumulation, rate, *_ = numbers(host, make("qwen2.5-coder-3b"))
        assert micro * accumulation * 8 == 16
        assert rate == 5e-5
        assert "0.05" in text_of(host, make("qwen2.5-coder-3b"), Path("run.yaml"))

    def test_a_gradient_that_is_not_divided_is_clipped_at_an_eighth_whatever_our_own_split(self, host):
        for gpus in (8, 2):
            assert numbers(host, make("qwen2.5-math-1.5b", faults=("gradient_not_divided",), gpus=gpus))[3] == 1 / 8

    def test_bf16_weights_are_one_change(self, host):
        right = keys(host, make("qwen2.5-math-1.5b"))
        fault = keys(host, make("qwen2.5-math-1.5b", faults=("bf16_weights",)))
        changed = {key for key in right.keys() | fault.keys() if right.get(key) != fault.get(key)}
        assert changed - {"output_dir", "trainer"}
        assert changed <= {"output_dir", "trainer", *OF_PRECISION}

    def test_the_loss_is_written_and_nll_is_the_papers_sft(self, host):
        assert keys(host, make("qwen2.5-math-1.5b"))["loss"] == "dft"
        assert keys(host, make("qwen2.5-math-1.5b", loss="nll"))["loss"] == "nll"

    def test_it_opens_with_the_line_that_trains_it_and_says_what_is_assumed(self, host):
        text = text_of(host, make("llama-3.2-3b"), Path("runs/a.yaml"))
        assert "runs/a.yaml" in text.splitlines()[0]
        assert "# Assumed: how chats are written for LLaMA and DeepSeekMath." in text


def test_it_agrees_with_the_examples_of_the_same_run():
    places = {"axolotl": "yml", "llamafactory": "yaml", "swift": "yaml", "verl": "yaml"}
    for host, suffix in places.items():
        example = yaml.safe_load((ROOT / "example_configs" / host / f"paper-qwen2.5-math-1.5b.{suffix}").read_text())
        recipe = keys(host, make("qwen2.5-math-1.5b"))
        shared = KEYS.get(host, ("optim",))
        for key in shared:
            assert example[key] == recipe[key], (host, key)


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"model": "qwen"}, "no model `qwen`; there are llama-3.2-3b"),
            ({"faults": ("none",)}, "no fault `none`; there are first_100k"),
            ({"faults": ("first_100k",)}, "python -m recipes data HOST --fault first_100k"),
            (
                {"model": "qwen2.5-3b", "faults": ("bf16_weights",)},
                "code for mathematics, and Qwen2.5-3B is of `code`",
            ),
            ({"lora": True, "faults": ("bf16_weights",)}, "adapters are float32"),
            ({"gpus": 7}, "7 GPUs do not make steps of 256 sequences"),
            ({"model": "qwen2.5-3b", "gpus": 32}, "32 GPUs do not make steps of 16"),
        ],
    )
    def test_what_cannot_be_written_says_what_can(self, given, said):
        with pytest.raises(RecipeError) as caught:
            make(**{"model": "qwen2.5-math-1.5b", **given})
        assert said in str(caught.value)

    def test_a_host_without_a_recipe_for_pictures(self):
        with pytest.raises(RecipeError, match="there are llamafactory, swift"):
            text_of("trl", make("qwen2.5-vl-3b"), Path("run.yaml"))

    def test_the_command_says_it_in_a_line(self):
        done = command("write", "trl", "qwen")
        assert done.returncode == 2
        assert done.stderr.startswith("Error: no model `qwen`")
        assert "Traceback" not in done.stderr


def command(*words, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "recipes", *words], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_lines_of_the_page(tmp_path):
    listed = command("list").stdout
    assert all(name in listed for name in (*names(), *FAULTS, *SETTINGS))
    done = command("write", "trl", "qwen2.5-math-1.5b", "--into", str(tmp_path))
    path = tmp_path / "trl-qwen2.5-math-1.5b-dft.yaml"
    assert done.stdout.splitlines() == [str(path), f"dft train {path}"]
    assert yaml.safe_load(path.read_text())["dataset_name"] == "data/math"


class TestPage:
    def test_it_is_up_to_date(self):
        assert page.text() == (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")

    def test_a_run_of_ours_stands_beside_the_papers(self, tmp_path, monkeypatch):
        rows = tmp_path / "results.jsonl"
        run = {"model": "qwen2.5-math-1.5b", "loss": "dft", "scores": [60, 20, 30, 10, 40]}
        rows.write_text("".join(json.dumps({**run, "lora": lora}) + "\n" for lora in (False, True)))
        monkeypatch.setattr(page, "RESULTS", rows)
        assert (
            "| DFT | 64.89 | 20.94 | 27.08 | 6.87 | 38.13 | 31.58 | 60.00 | 20.00 | 30.00 | 10.00 | 40.00 | 32.00 |"
            in page.text()
        )
        assert "| Qwen2.5-Math-1.5B | 16.87 | 32.90 |  | 32.00 |" in page.text()

    def test_each_mean_of_the_paper_is_that_of_its_five(self):
        for name, kinds in MATH_RESULTS.items():
            for kind, scores in kinds.items():
                assert len(scores) == len(BENCHMARKS) + 1
                assert scores[-1] == pytest.approx(sum(scores[:-1]) / 5, abs=0.011), (name, kind)


class TestScores:
    def test_five_and_their_mean_in_the_order_of_the_tables(self, tmp_path):
        values = dict(zip(evaluation.TASKS, (0.6, 0.2, 0.3, 0.1, 0.4), strict=True))
        results = {task: {"alias": task, "acc,all": value} for task, value in sorted(values.items())}
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "results_1.json").write_text(
            json.dumps({"results": {**results, "dft_math": {"alias": "x", "acc,all": 0.32}}})
        )
        assert list(evaluation.scores(tmp_path)) == [*evaluation.TASKS, "mean of the five"]
        assert evaluation.scores(tmp_path)["mean of the five"] == pytest.approx(32)

    def test_nothing_and_two_models_are_refused(self, tmp_path):
        with pytest.raises(RecipeError, match="--output_path"):
            evaluation.scores(tmp_path)
        for name in "ab":
            (tmp_path / name).mkdir()
            (tmp_path / name / "results_1.json").write_text(json.dumps({"results": {}}))
        with pytest.raises(RecipeError, match="several models"):
            evaluation.scores(tmp_path)
