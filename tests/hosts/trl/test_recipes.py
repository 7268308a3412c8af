"""The recipes: TRL's own parser takes each, and one of each architecture trains in TRL on stand-ins."""

from __future__ import annotations

import json
import math

import pytest
import torch
from support import recipe_runs, swift_runs, tiny, training
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl.cli.accelerate_config import resolve_accelerate_config_argument
from trl.scripts.sft import make_parser

from dft_plugin.cli.checking import check
from dft_plugin.config import handover
from dft_trl import run
from recipes.data import write as write_data
from recipes.paper import CODE, MATH

pytestmark = pytest.mark.host


@pytest.mark.parametrize(("model", "lora", "faults"), recipe_runs.cells(every_day=True))
def test_trls_parser_takes_every_key_and_the_loss_is_on(model, lora, faults, tmp_path, monkeypatch):
    path = recipe_runs.written("trl", tmp_path, model, lora=lora, faults=faults)
    report = check(path)
    assert (report.host.name, report.obstacles(), report.hints) == ("trl", [], [])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    words = ["--config", str(path), "--use_cpu", "true"]
    _, arguments, model_arguments, *_, rest = make_parser().parse_args_and_config(words, return_remaining_strings=True)
    assert set(rest[::2]) == {"--loss", "--accelerate_config", "--num_processes"}
    assert resolve_accelerate_config_argument(rest)
    assert (arguments.adam_beta2, arguments.lr_scheduler_type, model_arguments.use_peft) == (0.95, "cosine", lora)
    assert arguments.get_warmup_steps(1000) == 100 if arguments.per_device_train_batch_size == 4 else 50


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
)
MACHINE = "--use_cpu true --bf16 false --dtype float32 --optim adamw_torch --max_steps 1 --save_steps 1"


def qwen2(folder):
    """A tiny Qwen2 whose tokenizer has a token for each letter, and says how a chat is written, as Qwen's does."""
    tokenizer = swift_runs.tokenizer()
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    for one in (tokenizer, Qwen2ForCausalLM(Qwen2Config(**{**tiny.SHAPE, "vocab_size": len(tokenizer)}))):
        one.save_pretrained(folder)


def llama(folder):
    """A tiny LLaMA whose tokenizer does not say it."""
    for one in (training.tokenizer(), tiny.llama()):
        one.save_pretrained(folder)


KINDS = {
    "qwen2.5-math-1.5b": (qwen2, lambda pick: pick.choice(swift_runs.LETTERS), len),
    "llama-3.1-8b": (llama, lambda pick: f"w{pick.randint(4, tiny.VOCAB - 1)}", lambda text: len(text.split())),
}


def first_log(path, folder, monkeypatch):
    """Run what `dft train` starts on each rank, one step of it."""
    monkeypatch.chdir(folder)
    run.main([*handover.words(check(path).settings), "--config", str(path), *MACHINE.split()])
    (state,) = folder.glob("out/*/checkpoint-1/trainer_state.json")
    (entry, *_) = json.loads(state.read_text())["log_history"]
    return entry


@pytest.mark.parametrize(("model", "lora"), [("qwen2.5-math-1.5b", False), ("llama-3.1-8b", True)])
def test_it_trains_on_stand_ins(model, lora, tmp_path, monkeypatch):
    """A model of the same architecture, rows that `recipes data` has written, one process; the rest is the recipe."""
    make, word, tokens = KINDS[model]
    make(tmp_path / "model")
    rows = recipe_runs.prepared("trl", tmp_path / "data", word)
    given = {"gpus": 1, "path": str(tmp_path / "model"), "data": str(tmp_path / "data")}
    path = recipe_runs.written("trl", tmp_path, model, lora=lora, **given)
    entry = first_log(path, tmp_path, monkeypatch)
    # Twelve rows in the three passes of a step; of each the answer and its end, and not the question.
    assert entry["dft/tokens"] == sum(tokens(row["completion"][0]["content"]) + 1 for row in rows)
    assert 0 < entry["dft/loss"] < entry["dft/nll"] < math.inf


def test_of_rows_with_messages_trl_learns_the_question_too(tmp_path, monkeypatch):
    """Why `recipes data trl` writes two parts, and what example_configs/trl/full.yaml says of NuminaMath's rows."""
    make, word, tokens = KINDS["qwen2.5-math-1.5b"]
    make(tmp_path / "model")
    rows = recipe_runs.prepared("axolotl", tmp_path / "data", word)
    given = {"gpus": 1, "path": str(tmp_path / "model"), "data": str(tmp_path / "data")}
    path = recipe_runs.written("trl", tmp_path, "qwen2.5-math-1.5b", **given)
    entry = first_log(path, tmp_path, monkeypatch)
    assert entry["dft/tokens"] > sum(tokens(message["content"]) for row in rows for message in row["messages"])


class TestData:
    """Through the real `datasets`, streamed."""

    def source(self, folder, rows):
        path = folder / "source.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def test_the_best_answers_of_the_code_setting(self, tmp_path):
        rows = [
            {
                "source": "x",
                "instruction": f"do {n}",
                "completions": [{"response": f"{n}{k}", "overall_score": k} for k in (2, 9, 4)],
            }
            for n in range(8)
        ]
        rows.append({"source": "x", "instruction": "nobody answered", "completions": []})
        assert write_data("axolotl", CODE, tmp_path / "d", source=self.source(tmp_path, rows), rows=8) == 8
        made = [json.loads(line)["messages"] for line in (tmp_path / "d" / "train.jsonl").read_text().splitlines()]
        assert sorted(said["content"] for _, said in made) == [f"{n}9" for n in range(8)]

    def test_verl_gets_parquet_and_llamafactory_its_description(self, tmp_path):
        from datasets import load_dataset

        source = self.source(tmp_path, [{"problem": f"p{n}", "solution": f"s{n}"} for n in range(20)])
        for host in ("verl", "llamafactory"):
            write_data(host, MATH, tmp_path / host, source=source, rows=5)
        assert sorted(path.name for path in (tmp_path / "verl").iterdir()) == ["made_of.json", "train.parquet"]
        whole = load_dataset(
            "parquet", data_files=str(tmp_path / "verl" / "train.parquet"), cache_dir=str(tmp_path / "c")
        )["train"]
        lines = (tmp_path / "llamafactory" / "train.jsonl").read_text().splitlines()
        assert [row["messages"] for row in whole] == [json.loads(line)["messages"] for line in lines]
        described = json.loads((tmp_path / "llamafactory" / "dataset_info.json").read_text())["math"]
        assert described["formatting"] == "sharegpt"
        assert "images" not in described["columns"]

    def test_a_seed_draws_again_what_it_drew_and_the_fault_takes_the_first(self, tmp_path):
        source = self.source(tmp_path, [{"problem": f"p{n}", "solution": f"s{n}"} for n in range(50)])

        def drawn(name, **given):
            write_data("trl", MATH, tmp_path / name, source=source, rows=5, **given)
            return [
                json.loads(line)["prompt"][0]["content"]
                for line in (tmp_path / name / "train.jsonl").read_text().splitlines()
            ]

        assert drawn("a", seed=3) == drawn("b", seed=3) != drawn("c", seed=4)
        assert drawn("d", in_order=True) == [f"p{n}" for n in range(5)]
        assert json.loads((tmp_path / "d" / "made_of.json").read_text())["faults"] == ["first_100k"]
