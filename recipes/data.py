"""The data of a setting, as a host reads them: drawn at random with a seed, in one pass over the source.

The source is streamed: nothing is kept but what was drawn, as finished lines.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recipes.paper import CODE, MATH, MULTIMODAL, Setting
from recipes.recipe import RecipeError

ASK = " Let's think step by step and output the final answer within \\boxed{}."
"""What the released `numina_cot.py` puts behind each problem, into a column that its own command does not read."""

COLUMNS = {
    MATH.name: {"question": "problem", "answer": "solution"},
    CODE.name: {"question": "instruction", "answers": "completions"},
    MULTIMODAL.name: {},
}
"""Columns of the sources. Those of the multimodal one were not seen, so that they have to be given."""

NEEDED = {
    MATH.name: {"question", "answer"},
    CODE.name: {"question", "answers"},
    MULTIMODAL.name: {"question", "answer", "image"},
}

Row = dict[str, Any]


def draw(lines: Iterable[str], count: int | None, seed: int) -> Iterator[str]:
    """Yield `count` of the lines, each equally likely, in random order; all of them where no count is given.

    Holds at most `count` lines.

    Raises:
        RecipeError: there are fewer.
    """
    if count is None:
        yield from lines
        return
    pick = random.Random(seed)
    kept: list[tuple[float, int, str]] = []
    for at, line in enumerate(lines):
        # The largest key is on top, and gives way.
        entry = (-pick.random(), at, line)
        if len(kept) < count:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    if len(kept) < count:
        raise RecipeError(f"the source has {len(kept)} rows of use, and {count} were asked for. Give a smaller --rows")
    yield from (line for _, _, line in sorted(kept, reverse=True))


def first(lines: Iterable[str], count: int | None) -> Iterator[str]:
    """Yield the first `count` lines: the fault `first_100k`."""
    return islice(iter(lines), count)


def reader(setting: Setting, columns: Mapping[str, str], ask: str = "") -> Callable[[Row], Row | None]:
    """Return what makes question, answer and pictures of a row of the source; None for a row of no use.

    Raises:
        RecipeError: a column is not named.
    """
    names = {**COLUMNS[setting.name], **columns}
    if missing := sorted(NEEDED[setting.name] - names.keys()):
        raise RecipeError(
            f"{setting.dataset}: say which of its columns are {', '.join(missing)}: --column question=NAME and so on. "
            "What a picture's column holds are paths of pictures on this machine, which the data set does not bring"
        )

    def read(row: Row) -> Row | None:
        if gone := [name for name in names.values() if name not in row]:
            raise RecipeError(
                f"no column {', '.join(gone)} in the source; it has {', '.join(row)}. Say which with --column"
            )
        answer = _best(row[names["answers"]]) if "answers" in names else row[names["answer"]]
        question = row[names["question"]]
        if not question or not answer:
            return None
        pictures = row[names["image"]] if "image" in names else []
        pictures = [pictures] if isinstance(pictures, str) else list(pictures)
        return {"question": "<image>" * len(pictures) + question + ask, "answer": answer, "images": pictures}

    return read


def _best(answers: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the answer of the highest overall score; of several, the first."""
    scored = [
        (answer["overall_score"], answer["response"]) for answer in answers if answer["overall_score"] is not None
    ]
    return max(scored, key=lambda one: one[0])[1] if scored else None


def as_host(host: str, row: Row) -> Row:
    """Return a row as a host reads it. TRL learns whole chats, questions too, unless they come in two parts."""
    asked = {"role": "user", "content": row["question"]}
    said = {"role": "assistant", "content": row["answer"]}
    chat = {"prompt": [asked], "completion": [said]} if host == "trl" else {"messages": [asked, said]}
    return {**chat, "images": row["images"]} if row["images"] else chat


def stream(source: str, split: str = "train") -> Iterator[Row]:
    """Yield the rows of a file or of a data set on the hub."""
    from datasets import load_dataset

    path = Path(source)
    if path.is_file():
        kind = "parquet" if path.suffix == ".parquet" else "json"
        yield from load_dataset(kind, data_files=str(path), split="train", streaming=True)
    else:
        yield from load_dataset(source, split=split, streaming=True)


def write(
    host: str,
    setting: Setting,
    into: Path,
    *,
    source: str = "",
    rows: int | None = None,
    seed: int = 1,
    in_order: bool = False,
    columns: Mapping[str, str] | None = None,
    ask: bool = False,
) -> int:
    """Write the data of a setting into a folder, and how they came about beside them. Returns how many rows.

    Args:
        host: which reads them.
        setting: which they are of.
        into: the folder.
        source: a file, or a data set on the hub; else the paper's.
        rows: how many; else as many as in the paper.
        seed: of the draw.
        in_order: take the first ones: the fault `first_100k`.
        columns: names of the source's columns.
        ask: put the sentence of the released script behind each question.

    Raises:
        RecipeError: a column is missing, or there are too few rows.
    """
    count = setting.rows if rows is None else rows
    read = reader(setting, columns or {}, ASK if ask else "")
    made = (read(row) for row in stream(source or setting.dataset))
    lines = (json.dumps(as_host(host, row), ensure_ascii=False) for row in made if row is not None)
    chosen = first(lines, count) if in_order else draw(lines, count, seed)
    into.mkdir(parents=True, exist_ok=True)
    written = 0
    with (into / "train.jsonl").open("w", encoding="utf-8") as file:
        for line in chosen:
            file.write(line + "\n")
            written += 1
    if not written:
        raise RecipeError(f"{source or setting.dataset} has no row of use")
    _finish(host, setting, into)
    about = {
        "source": source or setting.dataset,
        "rows": written,
        "seed": None if in_order or count is None else seed,
        "faults": ["first_100k"] if in_order else [],
        "ask": ASK if ask else "",
        "host": host,
    }
    (into / "made_of.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return written


def _finish(host: str, setting: Setting, into: Path) -> None:
    """Add what a host needs beside the rows, or in their place."""
    if host == "verl":
        from datasets import Dataset

        with TemporaryDirectory(dir=into) as cache:
            Dataset.from_json(str(into / "train.jsonl"), cache_dir=cache).to_parquet(into / "train.parquet")
        (into / "train.jsonl").unlink()
    if host == "llamafactory":
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        columns = {"messages": "messages", **({"images": "images"} if setting is MULTIMODAL else {})}
        entry = {"file_name": "train.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}
        (into / "dataset_info.json").write_text(json.dumps({setting.name: entry}, indent=2) + "\n", encoding="utf-8")
