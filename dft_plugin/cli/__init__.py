"""The command `dft`."""

from dft_plugin.cli.app import main

__all__ = ["main"]
