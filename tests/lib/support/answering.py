"""A tiny model that answers in words, and `dft sample` on it: without datasets, TRL or the network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from dft_plugin.cli.app import app
from support import tiny

WORDS = 16
"""So few that a random model ends an answer now and then."""

TEMPLATE = (
    "{% for m in messages %}<s> {{ m['content'] }} </s>{% endfor %}{% if add_generation_prompt %} w15{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w3 to w15, and a chat template whose last word is where an answer begins."""
    words = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(3, WORDS))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.chat_template = TEMPLATE
    return made


def model(folder: Path, **generation: Any) -> Path:
    """Save the model; keywords go into its own generation config."""
    made = tiny.llama(vocab_size=WORDS)
    made.generation_config.update(**generation)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def questions(path: Path, count: int, **more: Any) -> Path:
    """Write questions of one to five words."""
    rows = [
        {"question": " ".join(f"w{3 + (number + place) % 12}" for place in range(1 + number % 5)), **more}
        for number in range(count)
    ]
    return write(path, rows)


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def sample(*words: object) -> Result:
    """Run `dft sample`; an error of ours is raised."""
    return CliRunner().invoke(app, ["sample", *map(str, words)], catch_exceptions=True)
