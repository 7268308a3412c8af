"""The tasks of lm-evaluation-harness. `nox -s evaluation` has it; other sessions leave out what needs it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from recipes import evaluation
from recipes.evaluation.tasks import scoring

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "recipes" / "evaluation" / "tasks"

needs_verify = pytest.mark.skipif(
    find_spec("math_verify") is None, reason="math-verify is not installed: nox -s evaluation"
)
needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed: nox -s evaluation")


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"problem": "p", "answer": "\\frac{1}{2}", "solution": "\\boxed{9}"}, "\\frac{1}{2}"),
        ({"problem": "p", "solution": "a \\boxed{1}, then \\boxed{\\frac{1}{2}}."}, "\\frac{1}{2}"),
        ({"problem": None, "question": "q", "final_answer": ["$25$"]}, "25"),
        ({"problem": "p", "answer": 27.0}, "27"),
        ({"problem": "p", "answer": 2.5}, "2.5"),
    ],
)
def test_the_answer_is_found_in_the_rows_of_each_source(row, gold):
    found = scoring._question(row)
    assert found == {"problem": row["problem"] or row["question"], "gold": gold}


def test_all_sixteen_samples_count(monkeypatch):
    monkeypatch.setattr(scoring, "is_right", lambda gold, sample: sample == gold)
    samples = ["5"] * 4 + ["\\boxed{6}"] * 12
    assert scoring.score({"gold": "5"}, [samples]) == {"acc": 0.25, "any": 1.0, "boxed": 0.75}


class Loader(yaml.SafeLoader):
    """Functions as their names."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_the_five_are_the_papers_protocol():
    shared = yaml.load((TASKS / "_paper.yaml").read_text(), Loader)
    given = shared["generation_kwargs"]
    assert (shared["repeats"], shared["filter_list"][0]["filter"][0]["k"]) == (16, 16)
    assert given == {"do_sample": True, "temperature": 1, "top_p": 1, "top_k": 0, "max_gen_toks": 4096, "until": []}
    group = yaml.safe_load((TASKS / "dft_math.yaml").read_text())
    assert tuple(group["task"]) == evaluation.TASKS
    for name in evaluation.TASKS:
        task = yaml.safe_load((TASKS / f"{name}.yaml").read_text())
        assert (task["task"], task["include"]) == (name, "_paper.yaml")
        assert task.keys() == {"task", "include", "dataset_path", "dataset_kwargs"}


@needs_verify
@pytest.mark.parametrize(
    ("gold", "sample", "right"),
    [
        ("5", "So it is \\boxed{5}.", True),
        ("5", "So it is \\boxed{6}.", False),
        ("\\frac{9}{2}", "Half of it is $\\boxed{4.5}$.", True),
        ("x=3", "Then $x = \\boxed{3}$.", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "the point \\boxed{(3, \\pi/2)}", True),
        ("25", "I do not know.", False),
        ("25", "", False),
    ],
)
def test_answers_are_checked_as_mathematics(gold, sample, right):
    assert scoring.is_right(gold, sample) is right


@needs_verify
def test_each_stand_in_question_has_an_answer_that_verifies_itself():
    rows = [json.loads(line) for line in (TASKS.parent / "sums.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    for row in map(scoring._question, rows):
        assert scoring.is_right(row["gold"], f"It is $\\boxed{{{row['gold']}}}$.")
        assert not scoring.is_right(row["gold"], "It is $\\boxed{-77}$.")


@needs_harness
def test_the_harness_asks_draws_scores_and_writes(tmp_path):
    """A tiny model on the ten sums: every link of the chain but the paper's files."""
    from support import tiny, training

    tokenizer = training.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tiny.llama(max_position_embeddings=256).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = ["--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'}", "--include_path", str(TASKS)]
    words += [
        "--tasks",
        "dft_sums",
        "--device",
        "cpu",
        "--batch_size",
        "4",
        "--log_samples",
        "--output_path",
        str(tmp_path),
        "--apply_chat_template",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(evaluation.scores(tmp_path)) == ["dft_sums"]
    (file,) = tmp_path.rglob("samples_dft_sums_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 10
    assert all(len(row["filtered_resps"][0]) == 2 for row in rows), "both samples of each question"
    assert any(len(set(row["filtered_resps"][0])) == 2 for row in rows), "they are drawn, not repeated"
    assert all(scoring.ASK in row["arguments"]["gen_args_0"]["arg_0"] for row in rows)
