"""The model card: a tag, and a block that says which loss was trained. Everything else in it stays as it is."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.constants import REPOCARD_NAME

from dft_plugin.config.record import FILE, Record, write_whole
from dft_plugin.saying import spared, warn

logger = logging.getLogger(__name__)

CARD = REPOCARD_NAME
TAG, LOSS_TAG = "dft-plugin", "loss:"
BEGIN, END = "<!-- dft-plugin: the loss. Written anew with each save. -->", "<!-- dft-plugin: end -->"

PAPER = "2508.05629"
CITATION = """\
```bibtex
@inproceedings{wu2026on,
  title     = {On the Generalization of {SFT}: A Reinforcement Learning Perspective with Reward Rectification},
  author    = {Wu, Yongliang and Zhou, Yizhou and Ziheng, Zhou and Peng, Yingzhe and Ye, Xinyu and Hu, Xinting and \
Zhu, Wenbo and Qi, Lu and Yang, Ming-Hsuan and Yang, Xu},
  booktitle = {International Conference on Learning Representations ({ICLR})},
  year      = {2026},
  eprint    = {2508.05629},
  archivePrefix = {arXiv},
}
```"""
"""Of the paper that `dft` is from, as in CITATION.cff."""

_BLOCK = re.compile(rf"[\r\n]*{re.escape(BEGIN)}.*?{re.escape(END)}[\r\n]*", re.DOTALL)
_VERSIONS = re.compile(r"^#+ Framework versions\s*$", re.MULTILINE)


def complete(folder: str | Path, record: Record) -> bool:
    """Put tag and block into the card of a folder, if it has one; what stood there of ours is replaced.

    A card whose metadata cannot be read is left as it is, with a warning: it is the user's to mend.

    Returns:
        Whether there was a card that could be completed.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        return False
    try:
        text = path.read_bytes().decode("utf-8-sig")
        done = completed(text, record)
    except Exception as error:
        warn(logger, "dft: %s cannot be read as a model card, and does not say which loss: %s", path, error)
        return False
    if done != text:
        with spared(logger, path):
            write_whole(path, done)
    return True


def completed(text: str, record: Record) -> str:
    """Return a card's text with tag and block.

    Raises:
        ValueError: its metadata is no mapping, or no YAML.
    """
    ends = "\r\n" if "\r\n" in text else "\n"
    head, body = _split(text)
    card = ModelCard(head if head else "---\n{}\n---\n")
    data: Any = card.data
    # Older releases of huggingface_hub make letters of a single tag.
    tags = (yaml.safe_load(re.sub(r"^---.*$", "", head, flags=re.MULTILINE)) or {}).get("tags")
    kept = [tags] if isinstance(tags, str) else list(tags or [])
    wanted = [TAG, f"{LOSS_TAG}{record['loss']['name']}"]
    others = [tag for tag in kept if not str(tag).startswith(LOSS_TAG)]
    if kept != [*others, *wanted[1:]] or TAG not in kept:
        data.tags = [*(tag for tag in others if tag != TAG), *wanted]
        head = str(card)
    return head + _with_block(body, block(record).replace("\n", ends), ends)


def _split(text: str) -> tuple[str, str]:
    """Return metadata, with the lines around them, and the rest."""
    found = re.match(r"---\r?\n.*?^---[ \t]*(\r?\n|$)", text, re.DOTALL | re.MULTILINE)
    return (text[: found.end()], text[found.end() :]) if found else ("", text)


def _with_block(body: str, made: str, ends: str) -> str:
    without = _BLOCK.sub(ends * 2, body)
    found = _VERSIONS.search(without)
    at = found.start() if found else len(without)
    # The words of others stay as they are; only empty lines beside the block are ours.
    parts = [without[:at].rstrip("\r\n"), made, without[at:].strip("\r\n")]
    return (ends * 2).join(part for part in parts if part) + ends


def block(record: Record) -> str:
    """Return what the card says of the loss."""
    loss = record["loss"]
    said = f"The loss was `{record['in_words']}` ({record['formula']}), computed by {record['written_by']}"
    if loss["name"] == "nll":
        said += "."
    else:
        said += (
            f" in the place of cross-entropy. Source: {record['source']}. Where this card says SFT, "
            "or shows a `loss`, it is this one; `dft/nll` is the likelihood."
        )
    besides = [part for part in (_tokens(record), _weights(loss), _reference(loss)) if part]
    lines = [
        BEGIN,
        "## Loss",
        "",
        said,
        *([f"Besides: {'; '.join(besides)}."] if besides else []),
        *_before(record),
        f"`{FILE}` has all options, and how it was computed.",
    ]
    if str(record["source"]).startswith(f"arXiv {PAPER}"):
        lines += ["", "Cite the method as:", "", CITATION]
    return "\n".join([*lines, END])


def _tokens(record: Record) -> str:
    learned = record["loss"].get("always_learn")
    return f"always learned: {', '.join(map(str, learned))}" if learned else ""


def _weights(loss: Record) -> str:
    weights = loss.get("weights") or {}
    tokens = [f"`{token}` x {factor:g}" for token, factor in weights.get("tokens", [])]
    column = [f"column `{weights['column']}`"] if weights.get("column") else []
    return f"weights: {', '.join([*column, *tokens])}" if weights else ""


def _reference(loss: Record) -> str:
    word = loss.get("reference")
    # A path of somebody's machine is nobody's business.
    return f"reference: {word if Path(str(word)).name == word else 'another model'}" if word else ""


def _before(record: Record) -> list[str]:
    parts = []
    for part in record["before"]:
        was = f"`{part.get('in_words')}`" if part["loss"] else "a loss of which there is no record"
        parts.append(f"until step {part['until_step']} {was}")
    return [f"Before it: {'; '.join(parts)}."] if parts else []
