"""`dft reference` with TRL: what it writes, and that training with it is training with the reference beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from datasets import load_dataset
from safetensors.torch import load_file
from support import tiny, training

from dft_plugin.cli import beforehand
from dft_plugin.config.hosts import Launch
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import ConflictError
from dft_plugin.hf.beforehand import Request, compute
from dft_trl import run
from dft_trl.run import show

pytestmark = pytest.mark.host

CONFIG = {
    "model_name_or_path": "model",
    "dataset_name": "data",
    "output_dir": "out",
    "max_length": 64,
    "per_device_train_batch_size": 24,
    "train_sampling_strategy": "sequential",
    "max_steps": 1,
    "learning_rate": 4.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "optim": "sgd",
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "dtype": "float32",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
PRIFT = {"name": "prift", "reference": "columns"}
BOTH = ("ref_logp", "ref_mass")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, and the working directory."""
    tiny.llama().save_pretrained(tmp_path / "model")
    training.tokenizer().save_pretrained(tmp_path / "model")
    put(tmp_path / "data", training.rows())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dft"])
    return tmp_path


def put(place, rows, **more):
    place.mkdir(exist_ok=True)
    lines = [{**training.as_text(row), **{key: row[key] for key in more}} for row in rows]
    (place / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))


def config(folder, loss=PRIFT, **changes):
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **changes, "loss": loss}))
    return path


def command(path, *overrides, out="made", columns=(), batch_size=5):
    """Run it here; returns the exit code."""
    return beforehand.run(beforehand.Asked(path, overrides, None, path.parent / out, columns, batch_size))


def written(folder, out="made"):
    return load_dataset(str(folder / out), cache_dir=str(folder / "cache"))


def train(folder, loss, **changes):
    """Train one step; returns the log and the weights."""
    out = f"trained {len(list(folder.iterdir()))}"
    (folder / "train.yaml").write_text(yaml.safe_dump({**CONFIG, **changes, "output_dir": out, "save_steps": 1}))
    run.main(["--dft-settings", json.dumps(loss), "--config", str(folder / "train.yaml")])
    saved = folder / out / "checkpoint-1"
    return json.loads((saved / "trainer_state.json").read_text())["log_history"][0], load_file(
        saved / "model.safetensors"
    )


def copied(text):
    """The lines that it says to copy into the config."""
    return yaml.safe_load(text.split("Train with\n", 1)[1].rsplit("\nin ", 1)[0])


def by_hand(ids, labels):
    """Log-probability and mass of a row's targets, at the places of their tokens."""
    with torch.no_grad():
        q = tiny.llama()(torch.tensor([ids])).logits[0].double().softmax(-1)
    found = {"ref_logp": [], "ref_mass": []}
    for at, label in enumerate(labels):
        target = at > 0 and label != -100
        own = q[at - 1, label] if target else torch.tensor(float("nan"))
        found["ref_logp"].append(own.log().item())
        found["ref_mass"].append((q[at - 1][q[at - 1] < own].sum() + own).item() if target else float("nan"))
    return found


def test_each_row_holds_what_trl_trains_and_its_columns_by_float64(folder, capsys):
    assert command(config(folder)) == 0
    rows = written(folder)["train"]
    tokenizer, texts = training.tokenizer(), (folder / "data" / "train.jsonl").read_text().splitlines()
    assert len(rows) == len(texts) == 24
    for row, text in zip(rows, map(json.loads, texts), strict=True):
        prompt, answer = (tokenizer(text[key])["input_ids"] for key in ("prompt", "completion"))
        assert row["input_ids"] == [*prompt, *answer, 2]
        assert row["labels"] == [*[-100] * len(prompt), *answer, 2]
        expected = by_hand(row["input_ids"], row["labels"])
        for name in BOTH:
            assert row[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6, nan_ok=True)
    said = capsys.readouterr()
    assert "dft: ref_logp, ref_mass of 24 rows (model: model), into " in said.err
    assert "rows of train 24" in said.out
    assert copied(said.out) == {
        "dataset_name": str(folder / "made"),
        "dataset_train_split": "train",
        "loss": {"name": "prift", "reference": "columns"},
    }


PACKED = {"packing": True, "max_length": 32, "per_device_train_batch_size": 24}


@pytest.mark.parametrize("changes", [{}, {"max_length": 9}, PACKED], ids=["rows", "cut", "packed"])
@pytest.mark.parametrize("by", ["prob", "mass"])
def test_a_step_is_that_of_the_same_reference_beside_the_training(by, changes, folder, capsys):
    loss = {"name": "prift", "by": by, **({"threshold": 0.2} if by == "mass" else {})}
    assert command(config(folder, {**loss, "reference": "copy"}, **changes)) == 0
    keys = copied(capsys.readouterr().out)
    assert keys.pop("loss") == {**loss, "reference": "columns"}
    one, after_one = train(folder, {**loss, "reference": "columns"}, **{**changes, **keys})
    two, after_two = train(folder, {**loss, "reference": "copy"}, **changes)
    nll, _ = train(folder, "nll", **changes)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
    assert one["dft/mean_weight"] == pytest.approx(two["dft/mean_weight"], rel=1e-6)
    assert tiny.max_gap(after_one, after_two) < 1e-6
    assert abs(one["loss"] - nll["loss"]) > 0.1, "the columns weigh nothing"


def test_texts_whose_first_token_is_a_label_are_trained_on_packed(folder, capsys):
    for row in (lines := [json.loads(line) for line in (folder / "data" / "train.jsonl").read_text().splitlines()]):
        row["text"] = row.pop("prompt") + row.pop("completion")
    (folder / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert command(config(folder, {**PRIFT, "reference": "copy"}, **PACKED)) == 0
    keys = copied(capsys.readouterr().out)
    one, after_one = train(folder, keys.pop("loss"), **{**PACKED, **keys})
    two, after_two = train(folder, {**PRIFT, "reference": "copy"}, **PACKED)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
    assert tiny.max_gap(after_one, after_two) < 1e-6


class Watching:
    """Stops after so many rows."""

    def __init__(self, stop_after=10**9):
        self.stop_after, self.begun, self.rows = stop_after, None, 0

    def begin(self, total, done, made_of):
        self.begun = total, done

    def advance(self, rows):
        self.rows += rows
        if self.rows > self.stop_after:
            raise KeyboardInterrupt


def piecewise(folder, out, watching):
    """Shards of five rows, so that there are several."""
    request = Request(BOTH, (), "columns", folder / out, 2, least=5)
    settings = build_catalogue().settings("prift")
    compute(show(Launch(str(config(folder)), (), settings), ()), request, watching)


def contents(folder, out):
    return {path.name: path.read_bytes() for path in sorted((folder / out).rglob("*")) if path.is_file()}


def test_interrupted_it_goes_on_and_ends_with_the_same_files(folder):
    piecewise(folder, "whole", Watching())
    stopped = Watching(stop_after=12)
    with pytest.raises(KeyboardInterrupt):
        piecewise(folder, "parts", stopped)
    partial = contents(folder, "parts")
    assert stopped.begun == (24, 0)
    assert len(partial) == 3, "the manifest, and two whole shards"
    again = Watching()
    piecewise(folder, "parts", again)
    assert again.begun == (24, 10)
    assert again.rows == 14, "nothing is run twice"
    assert contents(folder, "parts") == contents(folder, "whole")
    done = Watching()
    piecewise(folder, "parts", done)
    assert (done.begun, done.rows) == ((24, 24), 0)


def test_ctrl_c_says_that_the_same_command_goes_on(folder, monkeypatch, capsys):
    def interrupted(self, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(beforehand.Shown, "advance", interrupted)
    assert command(config(folder)) == 130
    assert "dft: stopped. The same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["dft"])
    assert command(config(folder)) == 0


def test_a_folder_made_of_something_else_is_refused_and_stays(folder):
    path = config(folder)
    command(path)
    before = contents(folder, "made")
    tiny.llama(seed=1).save_pretrained(folder / "other")
    training.tokenizer().save_pretrained(folder / "other")
    with pytest.raises(ConflictError) as caught:
        command(path, "model_name_or_path=other")
    (said,) = caught.value.problems
    assert "was made of something else" in said
    assert "model: model there, other here" in said
    assert "weights: " in said
    assert "tokens of train" not in said, "those are the same"
    assert "(--out)" in said
    put(folder / "data", training.rows(10))
    with pytest.raises(ConflictError, match=r"tokens of train: .*rows of train: 24 there, 10 here"):
        command(path)
    with pytest.raises(ConflictError, match=r"columns: ref_logp, ref_mass there, old_logp here"):
        command(path, columns=["old_logp"])
    assert contents(folder, "made") == before


def test_a_folder_of_the_users_is_refused_and_stays(folder):
    with pytest.raises(ConflictError, match=r"is there already, and `dft reference` has not made it\. .*--out"):
        command(config(folder), out="data")
    assert [path.name for path in (folder / "data").iterdir()] == ["train.jsonl"]


def test_psft_starts_at_a_ratio_of_one(folder, capsys):
    assert command(config(folder, "psft")) == 0
    keys = copied(capsys.readouterr().out)
    assert keys.pop("loss") == {"name": "psft"}
    log, _ = train(folder, "psft", **keys)
    assert log["loss"] == pytest.approx(-1, abs=1e-5)
    assert log["dft/mean_weight"] == pytest.approx(1, abs=1e-5)


def test_a_column_of_the_users_goes_along(folder, capsys):
    rows = [{**row, "ratio": 0.5 + number} for number, row in enumerate(training.rows())]
    put(folder / "data", rows, ratio=True)
    loss = {"name": "prift", "reference": "columns", "weights": {"column": "ratio"}}
    assert command(config(folder, loss)) == 0
    for number, row in enumerate(written(folder)["train"]):
        assert {r for r, y in zip(row["ratio"], row["labels"], strict=True) if y != -100} == {0.5 + number}
    keys = copied(capsys.readouterr().out)
    one, after_one = train(folder, keys.pop("loss"), **keys)
    two, after_two = train(folder, {**loss, "reference": "copy"})
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
    assert tiny.max_gap(after_one, after_two) < 1e-5


def test_rows_to_evaluate_are_written_too(folder, capsys):
    (folder / "data" / "test.jsonl").write_text(
        "\n".join((folder / "data" / "train.jsonl").read_text().split("\n")[:6])
    )
    assert command(config(folder, eval_strategy="steps", eval_steps=1)) == 0
    made = written(folder)
    assert (len(made["train"]), len(made["test"])) == (24, 6)
    assert made["test"][0]["ref_logp"][-1] == made["train"][0]["ref_logp"][-1]
    keys = copied(capsys.readouterr().out)
    assert keys["dataset_test_split"] == "test"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"packing": True, "packing_strategy": "wrapped"},
            "`packing_strategy: wrapped`: it cuts rows .*Set `pack",
        ),
        ({"dataset_streaming": True}, "the train data is streamed"),
        ({"fsdp": "full_shard"}, "asks for FSDP or DeepSpeed. Leave that out"),
        (
            {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "loss": {"name": "asft"}},
            "whole distribution",
        ),
    ],
    ids=["wrapped", "streamed", "sharded", "asft"],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(changes, said, folder):
    changes = dict(changes)
    with pytest.raises(ConflictError, match=said):
        command(config(folder, changes.pop("loss", PRIFT), **changes))
    assert not (folder / "made").exists()


def test_new_adapters_are_the_base_and_change_no_folder(folder, capsys):
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}
    path = config(folder, "prift", **lora)
    assert command(path, columns=["ref_logp", "old_logp"]) == 0
    said = capsys.readouterr().err
    assert "adapters of ref_logp: off, " in said
    assert "adapters of old_logp: as the run begins with them" in said
    assert command(path, columns=["ref_logp", "old_logp"]) == 0
    row = written(folder)["train"][3]
    expected = by_hand(row["input_ids"], row["labels"])
    assert row["ref_logp"] == pytest.approx(expected["ref_logp"], rel=1e-5, nan_ok=True)
    assert row["old_logp"] == pytest.approx(expected["ref_logp"], rel=1e-5, nan_ok=True)


def test_the_command_writes_beside_the_config_and_says_in_one_line_what_it_cannot(folder):
    config(folder, "psft")
    done = dft(folder, "reference", "sft.yaml", "--batch-size", "3", "--columns", "old_logp,ref_mass")
    assert done.returncode == 0, done.stderr
    assert "dataset_name: ./sft-reference\n" in done.stdout
    row = load_dataset(str(folder / "sft-reference"), cache_dir=str(folder / "cache"))["train"][0]
    assert {"old_logp", "ref_mass"} < row.keys()
    refused = dft(folder, "reference", "sft.yaml", "loss=dft")
    assert refused.returncode == 2
    assert refused.stderr.startswith("dft: the loss dft reads nothing that is computed beforehand")


def dft(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", "dft_plugin.cli", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
