"""What stands after `loss:` in a config that Axolotl has read, and what Axolotl's reader passes over. No Axolotl."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dft_plugin.config import files
from dft_plugin.config.overrides import Override, split
from dft_plugin.config.reading import LOSS, loss_of
from dft_plugin.errors import SettingsError

_WRITTEN_BY_AXOLOTL = "axolotl_config_"
"""How the names of files begin that Axolotl makes of a config that it got as an object."""


def checked(cfg: Mapping[str, Any]) -> Any:
    """Return what stands after `loss:`, None where there is no such key.

    Axolotl takes the last of two equal keys in silence, and `--loss__alpha 0.5` in the place of all that stands there.

    Raises:
        SettingsError: nothing stands there, the file is none that our reader takes, or the command line has a loss
            that Axolotl has not read.
    """
    loss = loss_of(cfg)
    require_read(cfg, sys.argv)
    path = Path(str(cfg.get("axolotl_config_path") or ""))
    if loss is None or not path.is_file() or path.name.startswith(_WRITTEN_BY_AXOLOTL):
        return loss
    written = files.read(path).get(LOSS)
    if isinstance(written, str) and isinstance(loss, Mapping) and "name" not in loss:
        return {"name": written, **loss}
    return loss


def require_read(cfg: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Check that what Axolotl's own command line says of the loss has become part of the config.

    `axolotl train` hands options that it does not know to the launcher: `--launcher python` drops them. With
    `strict: true` those are dropped that the YAML has not.

    Args:
        cfg: as Axolotl has read it, options of the command line in it.
        argv: of this process; another program's words are its own affair.

    Raises:
        SettingsError: lists the words that nobody has read.
    """
    if not _is_axolotls(Path(argv[0])):
        return
    problems = [
        f"`{one.typed}` was not read: Axolotl hands options that it does not know to the launcher, and drops them "
        f"with `--launcher python` or `strict: true`. Write it into the config, or start with `dft train CONFIG "
        f"{one.key.replace('__', '.')}={one.text}`."
        for one in split(argv[1:])
        if not _was_read(one, cfg.get(LOSS))
    ]
    if problems:
        raise SettingsError(problems)


def _is_axolotls(program: Path) -> bool:
    return program.stem == "axolotl" or program.parts[-3:-1] == ("axolotl", "cli")


def _was_read(one: Override, loss: Any) -> bool:
    """Say whether a word of the command line is in the config, or no affair of ours."""
    key = one.key.lower()
    options = loss if isinstance(loss, Mapping) else {"name": loss}
    if key == LOSS:
        return one.value in (options.get("name"), loss)
    if key.startswith(f"{LOSS}__"):
        read = options.get(key.removeprefix(f"{LOSS}__"))
        # Axolotl takes some values for texts.
        return read is not None and (read == one.value or str(read) == one.text)
    return not one.is_ours
