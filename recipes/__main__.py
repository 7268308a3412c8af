"""`python -m recipes list`, `data`, `write`, `page`. See README.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from recipes import data as preparing
from recipes import evaluation
from recipes import page as paging
from recipes.hosts import WRITERS, file_name, text_of, writer_of
from recipes.hosts import write as write_files
from recipes.paper import FAULTS, SETTINGS
from recipes.recipe import RecipeError, make

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
HERE = Path(__file__).parent


@contextmanager
def said() -> Iterator[None]:
    """Say what is wrong with a recipe in a line, without a traceback."""
    try:
        yield
    except RecipeError as error:
        typer.echo(f"Error: {error}.", err=True)
        raise typer.Exit(2) from error


HostArgument = Annotated[str, typer.Argument(help=f"One of {', '.join(WRITERS)}.")]


@app.callback()
def main() -> None:
    """The paper's runs at full size, in each host's own YAML."""


@app.command("list")
def show() -> None:
    """List hosts, models and faults."""
    typer.echo(f"hosts: {', '.join(WRITERS)}\n")
    for setting in SETTINGS.values():
        typer.echo(f"{setting.name}: {setting.rows or 'all'} rows of {setting.dataset}")
        for model in setting.models:
            typer.echo(f"  {model.name:20} {model.path}")
    typer.echo("\nfaults of the released code, off unless named:")
    for name, text in FAULTS.items():
        typer.echo(f"  {name:20} {text}")


@app.command()
def write(
    host: HostArgument,
    model: Annotated[str, typer.Argument(help="One of `python -m recipes list`.")],
    lora: Annotated[bool, typer.Option("--lora", help="Train adapters, as in the paper's table 9.")] = False,
    loss: Annotated[str, typer.Option(help="dft; nll is the paper's SFT; or any of `dft losses`.")] = "dft",
    fault: Annotated[list[str] | None, typer.Option(help="A fault of the released code; may be given again.")] = None,
    gpus: Annotated[int, typer.Option(help="Of this machine; a step has as many sequences with any number.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the run.")] = 1,
    data: Annotated[str, typer.Option(help="The folder that `data` wrote; else data/SETTING.")] = "",
    path: Annotated[str, typer.Option(help="A model on disk, in place of the hub's.")] = "",
    into: Annotated[Path | None, typer.Option(help="A file or folder; else the recipe is printed.")] = None,
) -> None:
    """Write a recipe."""
    with said():
        recipe = make(
            model, lora=lora, loss=loss, faults=tuple(fault or ()), gpus=gpus, seed=seed, data=data, path=path
        )
        name = file_name(host, recipe)
        if into is None:
            typer.echo(text_of(host, recipe, Path(name)), nl=False)
            return
        file = into if into.suffix else into / name
        for one in write_files(host, recipe, file):
            typer.echo(one)
    typer.echo(writer_of(host).command(recipe, str(file)))


@app.command()
def data(
    host: HostArgument,
    setting: Annotated[str, typer.Option(help=f"One of {', '.join(SETTINGS)}.")] = "math",
    into: Annotated[Path | None, typer.Option(help="A folder; else data/SETTING.")] = None,
    source: Annotated[str, typer.Option(help="A file, or a data set on the hub; else the paper's.")] = "",
    rows: Annotated[int | None, typer.Option(help="How many; else as many as in the paper.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 1,
    fault: Annotated[list[str] | None, typer.Option(help="first_100k.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="question=NAME, answer=NAME, image=NAME, of the source.")
    ] = None,
    ask: Annotated[
        bool, typer.Option("--ask", help="Put the sentence of the released script behind each question.")
    ] = False,
) -> None:
    """Draw the data of a setting at random, and write them as a host reads them."""
    with said():
        writer_of(host)
        if setting not in SETTINGS:
            raise RecipeError(f"no setting `{setting}`; there are {', '.join(SETTINGS)}")
        if unknown := set(fault or ()) - {"first_100k"}:
            raise RecipeError(f"no fault {', '.join(sorted(unknown))} of data; there is first_100k")
        folder = into or Path("data", setting)
        pairs = [text.partition("=") for text in column or ()]
        if wrong := [name for name, _, found in pairs if not found]:
            raise RecipeError(f"--column {wrong[0]}: write question=NAME")
        count = preparing.write(
            host,
            SETTINGS[setting],
            folder,
            source=source,
            rows=rows,
            seed=seed,
            in_order=bool(fault),
            columns={name: found for name, _, found in pairs},
            ask=ask,
        )
    typer.echo(f"{count} rows in {folder}")


@app.command()
def scores(
    folder: Annotated[Path, typer.Argument(help="What `lm_eval --output_path` has written, of one model.")],
) -> None:
    """Print the five scores of an evaluation, and their mean, in the order of the paper's tables."""
    with said():
        found = evaluation.scores(folder)
    typer.echo(" | ".join(["task", *found]))
    typer.echo(" | ".join(["per cent", *(f"{value:.2f}" for value in found.values())]))


@app.command("page")
def write_page(
    into: Annotated[Path, typer.Option(help="A file.")] = HERE.parent / "docs" / "recipes.md",
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where it is out of date.")] = False,
) -> None:
    """Write docs/recipes.md."""
    text = paging.text()
    if check:
        if not into.exists() or into.read_text(encoding="utf-8") != text:
            typer.echo(f"{into} is out of date: python -m recipes page", err=True)
            raise typer.Exit(1)
        return
    into.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app()
