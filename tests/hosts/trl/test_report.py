"""`dft report --model --data`: rows of the data, each target with the numbers of the model's own logits in float64."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from support import tiny, trl_runs

from dft_plugin.cli import sampling
from dft_plugin.errors import ConflictError
from dft_plugin.hf.sampling import LENGTH
from dft_plugin.runs.logs import Run
from dft_plugin.runs.samples import render

pytestmark = pytest.mark.host

NLL = Run("sft", Path("sft"), (), "nll", {"name": "nll", "kernel": "auto"})
ROOT = Run("root", Path("root"), (), "...", {"name": "dft", "alpha": {"from": 0, "to": 0.5, "until": 9}, "floor": 0.0})


@pytest.fixture
def home(tmp_path, monkeypatch):
    trl_runs.make_folder(tmp_path)
    (tmp_path / "sft.yaml").write_text(trl_runs.YAML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dft"])
    return tmp_path


def find(*runs, **asked):
    return sampling.find(
        sampling.Asked(**{"config": None, "model": None, "data": None, "loss": None, "rows": 3} | asked), runs
    )


class Shown(HTMLParser):
    """The rows of a page: of each token its text, and its numbers where it is a target."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.numbers, self.inside = [], None, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if given.get("class") == "tokens":
            self.inside = True
            self.rows.append([])
        elif self.inside and tag == "span":
            self.numbers = [float(number) for number in re.findall(r"-?\d[\d.e+-]*", given["data-n"])]
            self.numbers.append(float(given["style"].removeprefix("--w:")))

    def handle_endtag(self, tag):
        self.numbers = None
        self.inside = self.inside and tag != "div"

    def handle_data(self, data):
        if self.inside and self.rows:
            self.rows[-1].append((data, self.numbers))


def by_hand(row, alpha):
    """Numbers of each target of a row, from the logits in float64."""
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        logp = tiny.llama().double()(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    logp = logp[torch.tensor(row["labels"][1:]) != -100]
    weight = (alpha * logp).exp()
    return torch.stack([logp.exp(), weight, -logp, -weight * logp, weight], 1)


@pytest.mark.parametrize(
    ("runs", "loss", "alpha"),
    [((), None, 1.0), ((NLL, ROOT), None, 0.5), ((ROOT,), "{name: dft, alpha: 0.7}", 0.7)],
    ids=["dft", "of a run, at the end of its ramp", "named"],
)
def test_each_target_has_the_numbers_of_the_models_own_logits(home, runs, loss, alpha):
    found = find(*runs, config=Path("sft.yaml"), loss=loss)
    rows = trl_runs.rows(home)[:3]
    shown = Shown(render(found)).rows
    assert len(shown) == 3
    for row, tokens in zip(rows, shown, strict=True):
        numbers = torch.tensor([own for _, own in tokens if own is not None], dtype=torch.float64)
        torch.testing.assert_close(numbers[:, :4], by_hand(row, alpha)[:, :4], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(numbers[:, 4], by_hand(row, alpha)[:, 4], rtol=0, atol=1e-3)
        words = "".join(text for text, _ in tokens).split()
        targets = sum(label != -100 for label in row["labels"])
        assert [f"w{number}" for number in row["input_ids"][:-1]] == words[:-1]
        assert words[-1] == "</s>"
        assert sum(own is not None for _, own in tokens) == targets


def test_a_file_and_a_model_without_a_config(home):
    found = find(model="model", data="data/train.jsonl", rows=2)
    assert len(found.rows) == 2
    assert all(token.scored for row in found.rows for token in row.tokens[-1:])
    assert (found.model, found.data) == ("model", "data/train.jsonl")
    assert not (home / "run").exists()


def test_a_config_with_a_trained_model_in_the_place_of_its_own(home):
    model = tiny.llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained("trained")
    trl_runs.training.tokenizer().save_pretrained("trained")
    found = find(config=Path("sft.yaml"), model="trained", rows=1)
    scored = [token.scored for token in found.rows[0].tokens if token.scored]
    assert [one.p for one in scored] == pytest.approx([1 / tiny.VOCAB] * len(scored), rel=1e-5)
    assert found.model == "trained"


def test_always_learn_shows_in_the_weights(home):
    last = find(config=Path("sft.yaml"), loss="{name: dft, always_learn: [eos]}", rows=1).rows[0].tokens[-1]
    assert (last.text.strip(), last.scored.weight) == ("</s>", 1.0)


def test_a_long_row_is_cut_and_the_rest_counted(home):
    words = " ".join(f"w{3 + number % 20}" for number in range(LENGTH + 50))
    Path("long.jsonl").write_text(json.dumps({"prompt": "w3", "completion": f" {words}"}) + "\n")
    (row,) = find(model="model", data="long.jsonl").rows
    assert len(row.tokens) == LENGTH
    assert row.left_out == 52


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": "model"}, "give --model and --data"),
        ({"data": "data"}, "give --model and --data"),
        ({"loss": "dft"}, "give --model and --data"),
        ({"config": Path("sft.yaml"), "data": "data"}, "give --model and --data"),
        ({"config": Path("sft.yaml"), "loss": "prift"}, "compares with a frozen reference"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_what_to_do(home, asked, said):
    with pytest.raises(ConflictError, match=said):
        find(**asked)


def test_nobody_asks_and_nothing_is_run():
    assert find() is None
