"""A user's file as a mapping: its size, its encoding, JSON or YAML, keys that stand there twice. Files are only read.

YAML by PyYAML, since the hosts read the same file with it: a reader of YAML 1.2 would take `on` or `1e-5` for
something else than what trains.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

import yaml

from dft_plugin.config.strict import StrictLoader
from dft_plugin.errors import SettingsError

LIMIT = 1 << 20
"""Bytes of the largest file that is taken for a config: 1 MiB. What is longer is data, or a model."""

_GIVE = "Give the path of the config that you train with."

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


_TOO_DEEP = "{} is nested too deep to be read. Write it flatter."


def read(path: Path) -> dict[str, Any]:
    """Read a config.

    Args:
        path: `.json` is JSON, `.yaml` and `.yml` are YAML; with any other suffix the content decides.

    Raises:
        SettingsError: with what is wrong, where it stands, and what to do.
    """
    config = parse(_text(path), path)
    if config is None:
        raise SettingsError([f"{path} is empty. {_GIVE}"])
    if not isinstance(config, dict):
        raise SettingsError(
            [f"{path} holds a {type(config).__name__}; a config is a mapping of keys to values. {_GIVE}"]
        )
    return {str(key): value for key, value in config.items()}


def parse(text: str, path: Path) -> Any:
    """Parse the text of a config as `read` does.

    Args:
        text: what it holds.
        path: for its suffix, and for messages.

    Raises:
        SettingsError: it is neither JSON nor YAML, or a key stands there twice.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _parse_json(text, path)
    if suffix not in (".yaml", ".yml") and _is_json(text):
        return _parse_json(text, path)
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML: a file, or the value of an override.

    Args:
        text: one document.
        where: for messages.

    Raises:
        SettingsError: it is no YAML, or a key stands there twice.
    """
    try:
        # It looks at the characters as soon as it is made.
        loader = StrictLoader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise SettingsError([_not_yaml(error, text, where)]) from error
    except RecursionError as error:
        raise SettingsError([_TOO_DEEP.format(where)]) from error
    if loader.twice:
        raise SettingsError(
            f"{where}, line {again}: `{key}` stands there twice, first in line {first}, and YAML would take the last "
            "in silence. Keep one."
            for key, first, again in loader.twice
        )
    return value


def instead_of_safe_load(stream: Any) -> Any:
    """Stand in for `yaml.safe_load` where a host reads the config with it: `dft train` takes what `dft check` takes.

    Args:
        stream: a file that was opened, or a text.

    Raises:
        SettingsError: as `read`.
    """
    name = getattr(stream, "name", None)
    if isinstance(name, (str, Path)):
        # Its own encoding may be another than UTF-8.
        return read(Path(name))
    text = stream if isinstance(stream, str) else stream.read()
    return parse_yaml(text.decode("utf-8-sig") if isinstance(text, bytes) else text, "the config")


def _text(path: Path) -> str:
    if "\0" in str(path):
        raise SettingsError([f"{str(path)!r} is no path. {_GIVE}"])
    try:
        if str(path) == "-":
            raise SettingsError([f"a config on the standard input could not be read again by the host. {_GIVE}"])
        if path.exists() and not path.is_file():
            what = "folder" if path.is_dir() else "pipe or a device, which the host could not read again"
            raise SettingsError([f"{path} is a {what}. {_GIVE}"])
        if path.is_file() and path.stat().st_size > LIMIT:
            size = path.stat().st_size / (1 << 20)
            raise SettingsError(
                [f"{path} has {size:,.0f} MiB; a config has at most {LIMIT >> 20}. Is it data, or a model? {_GIVE}"]
            )
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError([f"{path} cannot be read ({error.strerror}). {_GIVE}"]) from error
    return _decoded(data, path)


def _decoded(data: bytes, path: Path) -> str:
    """Decode UTF-8, with a mark at its beginning or without."""
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise SettingsError([f"{path} is {name} (its first bytes are {mark.hex(' ')}). {_save(path, name)}"])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Its offset does not count the mark.
        at = error.start + (len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0)
        raise SettingsError([f"{path} is not UTF-8: {_place(data, at)}. {_save(path, 'latin-1')}"]) from error
    if "\0" in text:
        raise SettingsError(
            [f"{path} is no text in UTF-8: {_place(data, data.index(0))}. {_save(path, 'UTF-16')} {_GIVE}"]
        )
    return text


def _place(data: bytes, at: int) -> str:
    line = data.count(b"\n", 0, at) + 1
    return f"byte {at}, in line {line}, is 0x{data[at]:02x}"


def _save(path: Path, name: str) -> str:
    codes = {"latin-1": "ISO-8859-1"}
    return (
        f"Save it as UTF-8; if it is {name}: "
        f"`iconv -f {codes.get(name, name)} -t UTF-8 {path} > {path.stem}-utf8{path.suffix}`."
    )


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse_json(text: str, path: Path) -> Any:
    if not text.strip():
        return None
    twice: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in pairs:
            if key in made:
                twice.append(key)
            made[key] = value
        return made

    def no_number(word: str) -> None:
        raise SettingsError([f"{path} is not valid JSON: it has no {word}. Give a number."])

    try:
        value = json.loads(text, object_pairs_hook=mapping, parse_constant=no_number)
    except json.JSONDecodeError as error:
        raise SettingsError([_not_json(error, text, path)]) from error
    except RecursionError as error:
        raise SettingsError([_TOO_DEEP.format(path)]) from error
    except SettingsError:
        raise
    except ValueError as error:
        # Python refuses to read it, and would refuse to write it down again.
        raise SettingsError([f"{path} holds an integer of more than 4300 digits. Give a number."]) from error
    if twice:
        raise SettingsError(
            f"{path}: `{key}` stands twice in one mapping (lines {_lines(text, key)}), and JSON would take the last "
            "in silence. Keep one."
            for key in dict.fromkeys(twice)
        )
    return value


def _not_json(error: json.JSONDecodeError, text: str, path: Path) -> str:
    said = f"{path} is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})."
    try:
        parse_yaml(text, str(path))
    except SettingsError as no_yaml:
        too_deep = _TOO_DEEP.format(path)
        # Where the JSON reader goes deeper than the YAML reader (Python 3.13).
        if too_deep in no_yaml.problems:
            return too_deep
        return f"{said} Mend that place; JSON has no comments, and no comma behind the last entry."
    return f"{said} It reads as YAML, which has comments: rename it to {path.stem}.yaml."


def _lines(text: str, key: str) -> str:
    found = re.finditer(rf"{re.escape(json.dumps(key))}\s*:", text)
    return ", ".join(str(text.count("\n", 0, one.start()) + 1) for one in found) or "unknown"


def _not_yaml(error: yaml.YAMLError, text: str, where: str) -> str:
    """Say what is wrong in one line, and what mends the commonest."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem is None:
        said = " ".join(str(error).split())
    else:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        said = f"{error.problem}{place}"
    return f"{where} is not valid YAML: {said}. {_mended(said, text)}"


def _mended(said: str, text: str) -> str:
    if _is_json(text):
        return "It reads as JSON: name it `.json`."
    if "'\\t'" in said:
        return "Indent with spaces, not with tabs."
    if "mapping values are not allowed" in said:
        return "Put quotes around a value that holds `: `, and one blank behind each key's colon."
    if "found another document" in said:
        return "A config is one document: remove what stands behind `---`."
    if "could not determine a constructor" in said:
        return "Tags (`!...`) are not read: write the value itself."
    return "Mend that place: `key: value` on each line, `{` and `[` closed, quotes around what is text."
