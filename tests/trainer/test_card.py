"""The model card: our tag and our block come in, all other words stay."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dft_plugin.hf import card

RECORD = {
    "written_by": "dft-plugin 0.1.0",
    "in_words": "dft(alpha=1.0, floor=0.0)",
    "formula": "w = max(p ** alpha, floor)",
    "source": "arXiv 2508.05629, eq. 9",
    "loss": {"name": "dft", "alpha": 1.0, "floor": 0.0},
    "before": [],
}
USERS = """\
---
license: mit
tags:
- mine
model-index:
- name: x
  results: []
my_key: {a: 1}
---

# My model

A   line with  spaces.


Two empty lines above.

### Framework versions

- TRL: 1
"""


def head(text):
    return yaml.safe_load(text.split("---")[1])


def without_block(text):
    return re.sub(rf"\s*{re.escape(card.BEGIN)}.*{re.escape(card.END)}\s*", "\n\n", text, flags=re.DOTALL)


def test_a_users_card_keeps_its_words():
    done = card.completed(USERS, RECORD)
    assert without_block(done.split("---", 2)[2]) == USERS.split("---", 2)[2]
    assert head(done) == {**head(USERS), "tags": ["mine", "dft-plugin", "loss:dft"]}
    assert "`dft(alpha=1.0, floor=0.0)` (w = max(p ** alpha, floor)), computed by dft-plugin 0.1.0" in done
    assert done.index(card.BEGIN) < done.index("### Framework versions")


def test_done_again_nothing_changes():
    done = card.completed(USERS, RECORD)
    assert card.completed(done, RECORD) == done


def test_of_another_loss_nothing_is_left():
    nll = {**RECORD, "in_words": "nll", "formula": "w = 1", "source": "cross-entropy", "loss": {"name": "nll"}}
    done = card.completed(card.completed(USERS, RECORD), nll)
    assert done == card.completed(USERS, nll)
    assert head(done)["tags"] == ["mine", "dft-plugin", "loss:nll"]
    assert "bibtex" not in done
    assert "SFT" not in done


@pytest.mark.parametrize("text", ["# Mine\n", "", "---\n---\n# Mine\n", "---\ntags: one\n---\n# Mine"])
def test_a_card_without_metadata_or_tags_gets_them(text):
    done = card.completed(text, RECORD)
    tags = ["one"] if "one" in text else []
    assert head(done) == {"tags": [*tags, "dft-plugin", "loss:dft"]}
    assert ("# Mine" in done) == ("# Mine" in text)


def test_line_ends_stay():
    done = card.completed(USERS.replace("\n", "\r\n"), RECORD)
    assert "\r\n" in done
    assert done.replace("\r\n", "\n") == card.completed(USERS, RECORD)
    assert "\n" not in done.replace("\r\n", "")


@pytest.mark.parametrize("text", ["---\n- a list\n---\n# Mine\n", "---\ntags: [one\n---\n# Mine\n", "\udcff"])
def test_a_card_that_cannot_be_read_is_left_alone(text, tmp_path, caplog):
    raw = text.encode(errors="surrogateescape")
    (tmp_path / "README.md").write_bytes(raw)
    assert not card.complete(tmp_path, RECORD)
    assert (tmp_path / "README.md").read_bytes() == raw
    assert "README.md cannot be read as a model card" in caplog.text


def test_no_card_is_made(tmp_path):
    assert not card.complete(tmp_path, RECORD)
    assert not list(tmp_path.iterdir())


def test_what_else_is_trained_is_said_and_no_path():
    loss = {
        **RECORD["loss"],
        "always_learn": ["eos", 7],
        "weights": {"column": "ratio", "tokens": [["</think>", 2.0]]},
        "reference": "/home/somebody/model",
    }
    before = [{"until_step": 40, "loss": {"name": "nll"}, "in_words": "nll"}, {"until_step": 60, "loss": None}]
    made = card.block({**RECORD, "loss": loss, "before": before})
    assert "always learned: eos, 7; weights: column `ratio`, `</think>` x 2; reference: another model" in made
    assert "somebody" not in made
    assert "until step 40 `nll`; until step 60 a loss of which there is no record" in made


def test_the_citation_is_that_of_the_project():
    (paper,) = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text())["references"]
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    assert f"{{{authors}}}" in card.CITATION
    assert paper["title"] in card.CITATION.replace("{SFT}", "SFT")
    assert f"{{{card.PAPER}}}" in card.CITATION
    assert str(paper["year"]) in card.CITATION
