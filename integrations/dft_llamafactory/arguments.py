"""What a run was started with: our line apart from LLaMA-Factory's arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dft_plugin.config import files
from dft_plugin.config.overrides import LOSS, parted
from dft_plugin.config.reading import Request, load, may_name_loss, of_flags, of_mapping

_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


def read(given: Mapping[str, Any] | Sequence[str]) -> Request:
    """Read what `run_exp` got, or the words of a command line.

    Args:
        given: a mapping of keys; or a config file and `key=value` words; or `--key value` words.

    Raises:
        SettingsError: the file cannot be read, `loss` has no value, or an override of it is in a spelling that is not
            taken.
    """
    if isinstance(given, Mapping):
        return of_mapping(given)
    words = list(given)
    if words and words[0].endswith(_CONFIG_SUFFIXES):
        return _from_file(words[0], words[1:])
    return of_flags(words)


def read_if_ours(given: Mapping[str, Any] | Sequence[str]) -> Request:
    """Read as `read` does, but where nothing of ours is in it: what is LLaMA-Factory's own affair we do not judge."""
    return read(given) if may_name_loss(given) else Request(None, {}, {})


def known_keys(*, v1: bool) -> frozenset[str]:
    """Return the fields of LLaMA-Factory's groups of arguments, those of its v1 trainer where that is asked for."""
    if v1:
        from llamafactory.v1.config import arg_parser as groups

        kinds = [groups.ModelArguments, groups.DataArguments, groups.TrainingArguments, groups.SampleArguments]
    else:
        from llamafactory.hparams import parser

        kinds = parser._TRAIN_ARGS
    return frozenset(field.name for kind in kinds for field in fields(kind))


def _from_file(path: str, words: list[str]) -> Request:
    """Merge file and overrides as LLaMA-Factory does, but for JSON, on which 0.9.5 fails."""
    from omegaconf import OmegaConf

    ours, theirs = parted(words)
    read = load(Path(path), [word for one in ours for word in one.words])
    loss = read.request().loss
    # Its own reader for YAML: it takes `1e-5` for a number.
    is_json = Path(path).suffix == ".json"
    written: Any = OmegaConf.create(files.read(Path(path))) if is_json else OmegaConf.load(path)
    changes = OmegaConf.from_cli([word for one in theirs for word in one.words])
    merged: Any = OmegaConf.to_container(OmegaConf.merge(written, changes))
    rest = {str(key): value for key, value in merged.items() if key != LOSS}
    return Request(loss, rest, rest)
