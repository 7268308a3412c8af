"""The tutorial "First run" as it stands, with a tiny model in the place of the small one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import tiny, training

pytestmark = pytest.mark.host

PAGE = Path(__file__).parents[3] / "docs" / "first-run.md"
TEMPLATE = "{% for m in messages %}<s> {{ m['content'] }} </s>{% endfor %}"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What is there once all commands of the page were typed, and what each of them said."""
    folder = tmp_path_factory.mktemp("first")
    tokenizer = training.tokenizer()
    tokenizer.chat_template = TEMPLATE
    tiny.llama().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, code in zip(("sums.py", "ask.py"), blocks("python"), strict=True):
        (folder / name).write_text(code)
    run(folder, sys.executable, "sums.py")
    (config,) = blocks("yaml")
    # The model is all that is replaced.
    (folder / "sft.yaml").write_text(re.sub(r"HuggingFaceTB/\S+", "model", config))
    typed = [line for block in blocks("") for line in re.findall(r"^dft .*", block, re.M)]
    said = {line: run(folder, sys.executable, "-m", "dft_plugin.cli", *line.split()[1:]) for line in typed}
    return folder, said


def logged(folder: Path) -> list[dict[str, float]]:
    (state,) = folder.glob("checkpoint-*/trainer_state.json")
    return json.loads(state.read_text())["log_history"]


def test_the_commands_are_those_of_a_first_run(home):
    _, said = home
    assert list(said) == [
        "dft check sft.yaml",
        "dft probe sft.yaml --tokens 2000",
        "dft train sft.yaml",
        "dft train sft.yaml loss=nll output_dir=out/sft",
        "dft compare out/sft out/dft",
    ]


def test_the_rows_are_sums_that_are_right(home):
    folder, _ = home
    train, test = (
        [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    for row in train + test:
        asked = re.findall(r"\d+", row["prompt"][0]["content"])
        assert row["completion"][0]["content"].endswith(f" {sum(map(int, asked))}.")
    held_out = {row["prompt"][0]["content"] for row in test}
    assert held_out.isdisjoint(row["prompt"][0]["content"] for row in train)


def test_one_sees_what_the_page_shows(home):
    folder, said = home
    assert "the loss will be on" in said["dft check sft.yaml"]
    assert "probability" in said["dft probe sft.yaml --tokens 2000"]
    page = PAGE.read_text(encoding="utf-8")
    (line,) = re.findall(r"^dft: loss .*$", page, re.M)
    assert line in said["dft train sft.yaml"]
    of_dft, of_sft = logged(folder / "out" / "dft"), logged(folder / "out" / "sft")
    for key in re.findall(r"'(\S+)':", page):
        assert any(key in log for log in of_dft), key
    assert of_dft[0]["dft/nll"] == pytest.approx(of_sft[0]["dft/nll"], rel=1e-5)
    assert of_dft[0]["loss"] < of_sft[0]["loss"]
    record = json.loads((folder / "out" / "sft" / "dft_loss.json").read_text())
    assert record["loss"]["name"] == "nll"
    for title in re.findall(r"^│ ([a-z].*?) +│", page, re.M):
        assert title in said["dft compare out/sft out/dft"], title


def test_both_models_can_be_asked(home):
    folder, _ = home
    for name in ("sft", "dft"):
        assert re.match(r"\d+ of 32 right", run(folder, sys.executable, "ask.py", f"out/{name}"))


def test_the_config_is_short():
    (config,) = blocks("yaml")
    assert len(yaml.safe_load(config)) <= 15
