"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dft_plugin.cli import completing

Config = Annotated[Path, typer.Argument(help="The YAML or JSON that you train with. It is only read.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="key=value or --key value, e.g. learning_rate=1e-4 loss.alpha=0.7", autocompletion=completing.overrides
    ),
]
HostName = Annotated[
    str | None,
    typer.Option(
        "--host",
        help="Which host the config is for, where it is not clear from its keys.",
        autocompletion=completing.hosts,
    ),
]

TAKES_OVERRIDES = {"ignore_unknown_options": True}
"""`--loss.alpha 0.7` is no option of ours, and is handed on as it is."""
