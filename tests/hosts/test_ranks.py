"""Two processes (gloo) train what one does, and evaluate what stock does: weights, logs, every loader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import oracle, passes, ranks, ranks_columns, ranks_passes, ranks_recording, ranks_tensor_parallel, tiny

pytestmark = pytest.mark.host


def launch(processes, script, *words):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, script.__file__, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stderr


def load(path):
    return torch.load(path, weights_only=False)


def run(processes, host, kind, out, batch_size, loss="dft"):
    out.mkdir()
    err = launch(processes, ranks, host, kind, out, batch_size, loss)
    return load(Path(out) / "saved.pt"), err


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        pytest.param("transformers", "full", marks=pytest.mark.full),
        ("transformers", "tied"),
        pytest.param("transformers", "lora", marks=pytest.mark.full),
        ("trl", "lora"),
    ],
)
def test_two_processes_equal_one(host, kind, tmp_path):
    if host == "trl":
        pytest.importorskip("trl")
    one, _ = run(1, host, kind, tmp_path / "one", 4)
    two, err = run(2, host, kind, tmp_path / "two", 2)
    assert (one["world"], two["world"]) == (1, 2)
    assert tiny.max_gap(one["weights"], two["weights"]) < 1e-6
    for mine, theirs in zip(one["logs"], two["logs"], strict=True):
        for key in (key for key in mine if key == "loss" or key.startswith("dft/")):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-5), key
    counted = [(tmp_path / name / "dft_probabilities.jsonl").read_text() for name in ("one", "two")]
    assert counted[0] == counted[1]
    assert len(counted[0].splitlines()) == 3, "the first and the last interval, and the evaluation"
    assert two["evaluated"]["eval_dft/nll"] == pytest.approx(one["evaluated"]["eval_dft/nll"], rel=1e-5)
    assert err.count("dft: loss dft") == 1, "one start-up line, not one for each rank"
    assert err.count("mean probability is") == 1, "one warning, not one for each rank"


@pytest.mark.parametrize(
    ("host", "kind", "loss"),
    [
        ("transformers", "full", "divided"),
        pytest.param("transformers", "tied", "of_sequence", marks=pytest.mark.full),
        pytest.param("transformers", "lora", "ramp", marks=pytest.mark.full),
        pytest.param("trl", "lora", "divided", marks=pytest.mark.full),
        ("trl", "lora", "iw_sft"),
    ],
)
def test_what_a_step_is_divided_by_and_when_is_the_same_on_two_ranks(host, kind, loss, tmp_path):
    if host == "trl":
        pytest.importorskip("trl")
    one, _ = run(1, host, kind, tmp_path / "one", 4, loss)
    two, _ = run(2, host, kind, tmp_path / "two", 2, loss)
    gap = tiny.max_gap(one["weights"], two["weights"])
    assert gap < 1e-5 * max(float(value.abs().max()) for value in one["weights"].values())
    for mine, theirs in zip(one["logs"], two["logs"], strict=True):
        for key in (key for key in mine if key == "loss" or key.startswith("dft/")):
            assert theirs[key] == pytest.approx(mine[key], rel=2e-4 if key == "loss" else 1e-4), key


@pytest.mark.parametrize("kind", ["map", pytest.param("stream", marks=pytest.mark.full)])
def test_two_processes_weigh_by_a_column_as_one(kind, tmp_path):
    saved = []
    for processes, batch_size in ((1, 4), (2, 2)):
        out = tmp_path / str(processes)
        out.mkdir()
        launch(processes, ranks_columns, out, batch_size, kind)
        saved.append(load(out / "saved.pt"))
    one, two = saved
    assert tiny.max_gap(one["weights"], two["weights"]) < 1e-6
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)


@pytest.fixture(scope="module", params=["transformers", "trl"])
def found(request, tmp_path_factory):
    """What two ranks and what one found, with the same rows to a step."""
    if request.param == "trl":
        pytest.importorskip("trl")
    both = []
    for processes in (2, 1):
        out = tmp_path_factory.mktemp("ranks")
        launch(processes, ranks_passes, request.param, out)
        both.append(load(out / "saved.pt"))
    return both


class TestEvaluationOnTwoRanks:
    def test_statistics_are_exact_over_tokens_whatever_the_loader(self, found):
        found, _ = found
        assert len(found["evaluated"]) >= 8
        for name, (_, first, second) in found["evaluated"].items():
            rows, _, _ = ranks_passes.CASES[name]
            # Whole batches of two for each of two ranks.
            rows = rows[:8] if name == "drop_last" else rows
            expected = passes.statistics(tiny.llama(), rows, "eval_", oracle.nll)
            assert passes.of(first, "eval_") == pytest.approx(expected, rel=1e-5), name
            assert passes.of(second, "eval_") == passes.of(first, "eval_"), name

    def test_eval_loss_is_the_stock_trainers(self, found):
        found, _ = found
        for name, (stock, first, _) in found["evaluated"].items():
            assert first["eval_loss"] == pytest.approx(stock, rel=1e-6), name

    def test_the_stock_rule_shows_repeats(self, found):
        found, _ = found
        stock, ours, _ = found["evaluated"]["prepared"]
        assert stock != pytest.approx(ours["eval_dft/nll"], rel=1e-3)


class TestTrainingOnTwoRanks:
    def test_a_step_is_that_of_one_process_whoever_drops_the_count(self, found):
        (two, one) = (each["trained"] for each in found)
        reference, *_ = one["stock, average_tokens_across_devices=True"]
        for name in one:
            for weights, *_ in (two[name], one[name]):
                assert tiny.max_gap(weights, reference) < 1e-6, name

    def test_a_log_on_one_rank_waits_for_nobody_and_has_no_statistics(self, found):
        """That the two ranks came to an end is the claim."""
        for entries in (each["trained"]["stock, average_tokens_across_devices=True"][1] for each in found):
            lonely = [entry for entry in entries if entry.get("x_loss") or entry.get("loss") == 1.0]
            assert len(lonely) == 2 * 3
            assert not [key for entry in lonely for key in entry if "dft/" in key]

    def test_logs_evaluations_and_predictions_are_those_of_one_process(self, found):
        (two, one) = (each["trained"] for each in found)
        for name, (_, entries, predicted) in one.items():
            _, others, other = two[name]
            assert len(entries) == len(others)
            for mine, theirs in zip(entries, others, strict=True):
                for prefix in ("", "eval_"):
                    assert passes.of(theirs, prefix) == pytest.approx(passes.of(mine, prefix), rel=1e-4), name
            assert passes.of(predicted, "test_")
            assert passes.of(other, "test_") == pytest.approx(passes.of(predicted, "test_"), rel=1e-4)


def test_ranks_that_share_layers_count_their_tokens_once(tmp_path):
    tiny.llama().save_pretrained(tmp_path / "model")
    launch(2, ranks_tensor_parallel, tmp_path)
    first, second = (load(tmp_path / f"saved{rank}.pt") for rank in (0, 1))
    (stock, evaluated), (ours, our_evaluated) = first["stock"], first["ours"]
    assert our_evaluated["eval_loss"] == pytest.approx(evaluated["eval_loss"], rel=1e-6)
    expected = passes.statistics(tiny.llama(), ranks_tensor_parallel.ROWS, "eval_", oracle.nll)
    assert passes.of(our_evaluated, "eval_") == pytest.approx(expected, rel=1e-5)
    assert [passes.of(entry) for entry in second["ours"][0]] == [passes.of(entry) for entry in ours]
    for mine, theirs in zip(ours, stock, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert mine["dft/nll"] == pytest.approx(theirs["loss"], rel=1e-6)
    assert [entry["dft/tokens"] for entry in ours] == first["targets"] == second["targets"]


@pytest.mark.parametrize("kind", ["fsdp2", pytest.param("ddp", marks=pytest.mark.full)])
def test_one_rank_writes_what_was_trained_and_all_refuse_another_loss(kind, tmp_path):
    launch(2, ranks_recording, kind, tmp_path)
    for folder in ("checkpoint-1", ""):
        found = json.loads((tmp_path / folder / "dft_loss.json").read_text())
        assert (found["loss"]["name"], found["step"], found["computed"][0]["path"]) == ("dft", 1, "hidden states")
    for rank in (0, 1):
        assert "would go on with nll" in (tmp_path / f"refused-{rank}").read_text()
