"""Where questions come from: rows of a file, one at a time, or of the data that a config trains on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dft_plugin.config import jsons
from dft_plugin.errors import SettingsError

LINES = (".jsonl", ".ndjson")
_BUILDERS = {".json": "json", ".parquet": "parquet", ".csv": "csv"}

_GIVE = "Give the questions with --data: a file of JSON lines, JSON, Parquet or CSV, or a dataset's folder or name."


@dataclass(frozen=True)
class Source:
    """Rows.

    Attributes:
        path: a file, a folder, or a name on the hub.
        split: of a folder or a name.
        options: what else `datasets.load_dataset` is given.
    """

    path: str
    split: str = "train"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_lines(self) -> bool:
        """Whether it is a file of JSON lines, for which no library is needed."""
        return Path(self.path).suffix in LINES

    def problem(self) -> str | None:
        """Say what is wrong with it, as far as can be seen before a row is read."""
        path = Path(self.path)
        if path.suffix in (*LINES, *_BUILDERS) and not path.is_file():
            return f"{self.path}: there is no such file. {_GIVE}"
        if path.is_file() and path.suffix not in (*LINES, *_BUILDERS):
            return f"{self.path}: a file of this kind is not read. {_GIVE}"
        return None

    def fingerprint(self) -> str:
        """Return what tells whether it is the same data: of a file its size and beginning, else its name."""
        path = Path(self.path)
        if not path.is_file():
            return f"{self.path} [{self.split}]"
        with path.open("rb") as file:
            begins = hashlib.sha256(file.read(1 << 16)).hexdigest()[:12]
        return f"{path.name}, {path.stat().st_size} bytes, {begins}"

    def count(self) -> int | None:
        """Return how many rows there are; None where nobody knows before they are read."""
        if not self.is_lines:
            return None
        with Path(self.path).open("rb") as file:
            return sum(1 for line in file if line.strip())

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield rows; no more than one is held.

        Raises:
            SettingsError: a line is no JSON object, or `datasets` is missing or cannot read it.
        """
        return self._lines() if self.is_lines else self._by_datasets()

    def _lines(self) -> Iterator[Mapping[str, Any]]:
        with Path(self.path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = jsons.parsed(line)
                except ValueError as error:
                    raise SettingsError([f"{self.path}, line {number}, is no JSON: {error}."]) from error
                if not isinstance(row, dict):
                    raise SettingsError(
                        [f"{self.path}, line {number}, is a {type(row).__name__}; a row is an object."]
                    )
                yield row

    def _by_datasets(self) -> Iterator[Mapping[str, Any]]:
        try:
            from datasets import load_dataset
        except ModuleNotFoundError as error:
            said = f"{self.path} is read by the package datasets, which is not here. Run: pip install datasets"
            raise SettingsError([f"{said}; or give a file of JSON lines, which needs nothing."]) from error
        suffix = Path(self.path).suffix
        what = {"path": self.path}
        if suffix in _BUILDERS and Path(self.path).is_file():
            what = {"path": _BUILDERS[suffix], "data_files": self.path}
        try:
            yield from load_dataset(**what, split=self.split, streaming=True, **self.options)
        except (OSError, ValueError) as error:
            raise SettingsError([f"{self.path}, split {self.split}: datasets says {error}. {_GIVE}"]) from error


def of_config(config: Mapping[str, Any]) -> Source:
    """Return where the first of a config's data is, as its host names it.

    Raises:
        SettingsError: it names none, or in a way that only the host reads.
    """
    found = _trl_or_axolotl(config) or _llamafactory(config) or _swift(config) or _verl(config)
    if found is None:
        raise SettingsError([f"the config names no data that could be read here. {_GIVE}"])
    return found


def _trl_or_axolotl(config: Mapping[str, Any]) -> Source | None:
    named = _first(config.get("datasets"))
    if isinstance(named, Mapping) and "path" in named:
        options = {key: named[key] for key in ("name", "data_files", "data_dir", "revision") if named.get(key)}
        files = options.get("data_files")
        if named["path"] == "json" and isinstance(files, str):
            return Source(files)
        return Source(str(named["path"]), _split(named.get("split")), options)
    if isinstance(config.get("dataset_name"), str):
        options = {"name": config["dataset_config"]} if config.get("dataset_config") else {}
        return Source(config["dataset_name"], _split(config.get("dataset_train_split")), options)
    return None


def _llamafactory(config: Mapping[str, Any]) -> Source | None:
    name = _first(config.get("dataset"))
    if not isinstance(name, str) or "stage" not in config:
        return None
    folder = Path(str(config.get("dataset_dir", "data")))
    try:
        entry = jsons.read(folder / "dataset_info.json")[name.split(",")[0].strip()]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(entry, Mapping):
        return None
    if "file_name" in entry:
        return Source(str(folder / entry["file_name"]))
    return Source(entry["hf_hub_url"], _split(entry.get("split"))) if "hf_hub_url" in entry else None


def _swift(config: Mapping[str, Any]) -> Source | None:
    name = _first(config.get("dataset"))
    if not isinstance(name, str) or "stage" in config:
        return None
    # `path#1000` are a thousand rows of it.
    return Source(name.partition("#")[0])


def _verl(config: Mapping[str, Any]) -> Source | None:
    data = config.get("data")
    files = _first(data.get("train_files")) if isinstance(data, Mapping) else None
    return Source(files) if isinstance(files, str) else None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value


def _split(value: Any) -> str:
    # A slice cannot be streamed; --limit says how many.
    return str(value).partition("[")[0] if value else "train"
