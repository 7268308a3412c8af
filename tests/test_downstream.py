"""What is compared where nobody asked for the loss: the comparison must be able to fail."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from reliability.downstream import page, suites, suites_page, trainings


def folder(home, weight=1.0, loss=2.0, **more):
    out = home / "out"
    out.mkdir(parents=True, exist_ok=True)
    save_file({"weight": torch.full((2,), weight)}, out / "model.safetensors", metadata=more.get("metadata"))
    log = [{"loss": loss, "train_runtime": more.get("runtime", 1.0)}]
    (out / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return trainings.outcome(home, more.get("said", ""), 0)


def test_what_depends_on_the_clock_or_is_free_text_is_not_compared(tmp_path):
    first = folder(tmp_path, metadata={"format": "pt"})
    second = folder(tmp_path, metadata={"format": "pt", "made": "today"}, runtime=7.0)
    assert first == second
    assert page.compared(first, {**second, "run": "installed"}) == "same"


@pytest.mark.parametrize(("changes", "other"), [({"weight": 1 + 2**-23}, "weights"), ({"loss": 2.0000000001}, "log")])
def test_the_last_bit_of_a_weight_or_a_loss_shows(changes, other, tmp_path):
    first, second = folder(tmp_path), folder(tmp_path, **changes)
    assert page.compared(first, {**second, "run": "installed"}) == f"**other {other}**"


def test_a_run_that_failed_is_no_comparison(tmp_path):
    first = folder(tmp_path)
    assert page.compared(first, {**first, "run": "installed", "failed": "..."}) == "**did not run**"
    assert "failed" in trainings.outcome(tmp_path / "nowhere", "", 0)


def test_a_control_that_is_the_same_shows(tmp_path):
    first = folder(tmp_path)
    assert page.compared(first, {**first, "run": "asked for"}) == "**same**"


def test_a_word_of_ours_is_heard(tmp_path):
    said = "Training\ndft: loss dft is on\nits dft-plugin\nmydft: no\n"
    assert folder(tmp_path, said=said)["said"] == ["dft: loss dft is on", "its dft-plugin"]


@pytest.mark.parametrize("patcher", ["dft_axolotl", "dft_llamafactory", "dft_swift"])
def test_what_autoload_brings_into_a_run_builds_no_model_of_settings(patcher):
    asked = f"import sys, {patcher}.autoload; print(sorted({{'pydantic', 'pluggy', 'torch'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def row(nll="passed", gap=0.0, under=("nll",), trained=(1, 1)):
    outcomes = {"stock": {"outcome": "passed", "why": ""}, "nll": {"outcome": nll, "why": "because"}}
    return {"part": "suite", "test": "T::t", **outcomes, "gap": gap, "under": list(under), "trained": list(trained)}


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (row(), "same"),
        (row(gap=1e-8), "same"),
        (row(gap=1e-3), "weights"),
        (row(gap=float("nan")), "weights"),
        (row(nll="failed"), "outcome"),
        (row(under=["ConflictError: no"]), "not put"),
        (row(trained=(2, 1)), "outcome"),
        (row(trained=(0, 0), gap=None, under=[]), "trains nothing"),
    ],
)
def test_a_test_of_theirs_is_the_same_only_if_all_of_it_is(given, verdict):
    assert suites_page.verdict(given) == verdict


def test_the_gap_of_two_files_of_weights(tmp_path):
    torch.save({"a": torch.tensor([1.0, 2.0])}, tmp_path / "1")
    torch.save({"a": torch.tensor([1.0, 2.5])}, tmp_path / "2")
    torch.save({"b": torch.tensor([1.0, 2.5])}, tmp_path / "3")
    torch.save({"a": torch.tensor([1.0, torch.nan])}, tmp_path / "4")
    assert suites.gap(tmp_path / "1", tmp_path / "4") == (float("inf"), True)
    assert suites.gap(tmp_path / "4", tmp_path / "4") == (0.0, False)
    assert suites.gap(tmp_path / "1", tmp_path / "2") == (0.5, True)
    assert suites.gap(tmp_path / "1", tmp_path / "3") == (float("inf"), True)
