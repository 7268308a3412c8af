"""Recipes in the words of each host: one module each, with the same three functions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from recipes.hosts import axolotl, llamafactory, swift, trl, verl
from recipes.recipe import Recipe, RecipeError


class Writer(Protocol):
    """What a module of this package has."""

    SUFFIX: str
    """Of its YAML files."""

    SEES: bool
    """Whether it has a recipe for a model that sees."""

    def config(self, recipe: Recipe) -> dict[str, Any]:
        """Return the keys of the YAML, `loss` among them."""

    def command(self, recipe: Recipe, file: str) -> str:
        """Return the line that trains it."""


WRITERS: dict[str, Writer] = {
    "trl": trl,
    "axolotl": axolotl,
    "llamafactory": llamafactory,
    "swift": swift,
    "verl": verl,
}


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are."""


def _as_written(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _as_written)


def writer_of(host: str) -> Writer:
    """Return the module of a host.

    Raises:
        RecipeError: there is none.
    """
    if host not in WRITERS:
        raise RecipeError(f"no host `{host}`; there are {', '.join(WRITERS)}")
    return WRITERS[host]


def file_name(host: str, recipe: Recipe) -> str:
    """Return what a file is called where nothing is said."""
    return f"{host}-{recipe.name}{writer_of(host).SUFFIX}"


def text_of(host: str, recipe: Recipe, file: Path) -> str:
    """Return a recipe as a file, its command in the first line.

    Raises:
        RecipeError: no such host, or it has no recipe for this model.
    """
    writer = writer_of(host)
    if recipe.setting.name == "multimodal" and not writer.SEES:
        able = ", ".join(name for name, one in WRITERS.items() if one.SEES)
        raise RecipeError(
            f"no recipe for a model that sees in {host}; the paper used LLaMA-Factory, and there are {able}"
        )
    opening = [
        f"# {writer.command(recipe, str(file))}",
        "#",
        f"# arXiv 2508.05629, `{recipe.setting.name}`: {recipe.about}",
        *(f"# Assumed: {text}." for text in recipe.setting.assumed),
        *(f"# On: the fault `{fault}` of the released code." for fault in sorted(recipe.faults)),
        f"# Made by `python -m recipes write {host} {recipe.model.name}`, its data by "
        f"`python -m recipes data {host} --setting {recipe.setting.name}`.",
    ]
    keys = yaml.dump(writer.config(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return "\n".join([*opening, "", keys])


def write(host: str, recipe: Recipe, file: Path) -> list[Path]:
    """Write a recipe, and beside it the template of its chats for a host that reads one from a file. Returns both.

    Raises:
        RecipeError: as `text_of`.
    """
    files = [file]
    beside = file.with_suffix(".jinja")
    if recipe.template and host == "trl":
        recipe = replace(recipe, template_copy=str(beside))
        files.append(beside)
    text = text_of(host, recipe, file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    if recipe.template_copy and recipe.template:
        beside.write_text(recipe.template.read_text(encoding="utf-8"), encoding="utf-8")
    return files
