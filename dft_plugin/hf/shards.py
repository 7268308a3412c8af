"""A folder of tokenised rows that is written piece by piece, and gone on with where it was left.

    FOLDER/reference.json                              of what it was made
    FOLDER/data/SPLIT-00000-of-00012.parquet           rows, in the order of the data they come from

`load_dataset(FOLDER)` reads it, and so does a hub that it is uploaded to.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dft_plugin.config import jsons
from dft_plugin.errors import ConflictError

MANIFEST = "reference.json"

_LEAST, _MOST = 64, 256
"""Rows of a shard at least, and shards of a split at most: what an interrupted run loses, and files to open."""

_WIDTHS = {"input_ids": "int32", "labels": "int32", "position_ids": "int32", "attention_mask": "int8"}


@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
        split: of which split.
        path: where it is, or will be.
        rows: which rows of the split.
    """

    split: str
    path: Path
    rows: range


@dataclass(frozen=True)
class Folder:
    """Where rows are written to.

    Attributes:
        path: the folder.
        made_of: all that its rows depend on, in words.
        counts: rows by split.
        least: rows of a shard at least.
    """

    path: Path
    made_of: Mapping[str, str]
    counts: Mapping[str, int]
    least: int = _LEAST

    @property
    def shards(self) -> list[Shard]:
        """All files."""
        found = []
        for split, count in self.counts.items():
            size = max(self.least, -(-count // _MOST))
            starts = range(0, count, size)
            for at, start in enumerate(starts):
                name = f"{split}-{at:05d}-of-{len(starts):05d}.parquet"
                found.append(Shard(split, self.path / "data" / name, range(start, min(start + size, count))))
        return found

    def open(self) -> list[Shard]:
        """Begin, or go on.

        Returns:
            What is still to be written.

        Raises:
            ConflictError: the folder holds something else, or was made of something else.
        """
        manifest = self.path / MANIFEST
        wanted = {"made_of": dict(self.made_of), "rows": dict(self.counts), "shard": self.least}
        if manifest.exists():
            self._require_same(_read(manifest), wanted)
        elif self.path.exists() and not self._is_empty():
            raise ConflictError(
                [f"{self.path} is there already, and `dft reference` has not made it. Give another folder: --out."]
            )
        else:
            try:
                (self.path / "data").mkdir(parents=True, exist_ok=True)
                _put(manifest, lambda path: path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8"))
            except OSError as error:
                problem = f"{self.path} cannot be written ({error}). Give another folder: --out."
                raise ConflictError([problem]) from error
        return [shard for shard in self.shards if not shard.path.exists()]

    def _is_empty(self) -> bool:
        """Whether nothing is in it but what an attempt leaves that ended before its first row."""
        entries = list(self.path.iterdir()) if self.path.is_dir() else [self.path]
        return all(entry.name == "data" and entry.is_dir() and not any(entry.iterdir()) for entry in entries)

    def _require_same(self, found: Any, wanted: Mapping[str, Any]) -> None:
        if found == wanted:
            return
        there, here = (
            {**one.get("made_of", {}), **{f"rows of {split}": count for split, count in one.get("rows", {}).items()}}
            for one in (found, wanted)
        )
        differ = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        said = [f"{key}: {there.get(key, 'none')} there, {here.get(key, 'none')} here" for key in differ]
        raise ConflictError(
            [
                f"{self.path} was made of something else, so its rows would not belong together with those of this "
                f"run ({'; '.join(said) or 'by another version of dft-plugin'}). Give another folder (--out), or "
                f"remove that one."
            ]
        )


def _read(manifest: Path) -> Any:
    try:
        return jsons.read(manifest)
    except ValueError as error:
        problem = f"{manifest} is damaged ({error}), so nobody knows of what its rows are made"
        raise ConflictError([f"{problem}. Give another folder: --out."]) from error


def write(shard: Shard, rows: Mapping[str, Sequence[Any]]) -> None:
    """Write a shard as a whole: it is there, or it is not.

    Args:
        shard: where.
        rows: lists for each column; token ids and labels are kept in 32 bits, numbers in float32.
    """
    import pyarrow as pa
    from pyarrow import parquet

    def of(name: str) -> Any:
        return pa.list_(getattr(pa, _WIDTHS[name])() if name in _WIDTHS else pa.float32())

    table = pa.table({name: pa.array(values, of(name)) for name, values in rows.items()})
    _put(shard.path, lambda path: parquet.write_table(table, path))


def saved_to_disk(folder: Path, splits: Sequence[str], called: Mapping[str, str]) -> Path:
    """Write the rows of a folder once more, in it, as `datasets.load_from_disk` reads them; return where.

    Args:
        folder: what was written here.
        splits: which.
        called: other names for some of them.
    """
    from datasets import load_dataset

    done, unfinished, cache = folder / "tokenized", folder / ".tokenized", folder / ".cache"
    if done.exists():
        return done
    data = folder / "data"
    files = {called.get(split, split): sorted(map(str, data.glob(f"{split}-[0-9]*.parquet"))) for split in splits}
    try:
        load_dataset("parquet", data_files=files, cache_dir=str(cache)).save_to_disk(str(unfinished))
        unfinished.replace(done)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        shutil.rmtree(unfinished, ignore_errors=True)
    return done


def _put(path: Path, fill: Any) -> None:
    # Hidden until it is whole: no glob of a reader finds it.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fill(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
