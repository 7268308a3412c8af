"""A tiny model that can be asked: what `evidence/real` trains in the place of SmolLM2."""

from __future__ import annotations

import json
from pathlib import Path

from evidence.real import grid
from evidence.real.configs import Host, Tuning
from evidence.real.questions import Shown
from evidence.real.training import SHORT
from support import tiny, training

TEMPLATE = "{% for m in messages %}<s> {{ m['content'] }} </s>{% endfor %}"


def model(folder: Path) -> None:
    """Put it into a folder, where it is not there yet."""
    if not folder.exists():
        tokenizer = training.tokenizer()
        tokenizer.chat_template = TEMPLATE
        # A host's template may bring tokens of its own.
        tiny.llama(vocab_size=tiny.VOCAB + 8).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def assert_trained_and_asked(home: Path, tuning: Tuning, loss: str, host: Host = "TRL") -> None:
    """Train two steps by a host's own config, ask, and see that nothing of it is left."""
    run = grid.RealRun(Shown("facts", 0.4), tuning, loss, 1, SHORT, model, host)
    row = json.loads(json.dumps(run.execute(None, home, lambda: None)))
    assert row["key"] == run.key
    assert [line["step"] for line in row["logs"]] == [1, 2]
    assert 0 < row["before"]["mean_prob"] < 1
    assert set(row["accuracy"]) == {"taught@0", "taught@1"}
    assert [path.name for path in home.iterdir()] == ["real"]
