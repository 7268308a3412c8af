"""What `dft autoload enable` does to `llamafactory.v1.config.arg_parser`: the v1 trainer refuses our line."""

from __future__ import annotations

import functools
import os
import sys
from types import ModuleType
from typing import Any


def patch(module: ModuleType) -> None:
    """Let `get_args` refuse `loss:`, which ALLOW_EXTRA_KEYS would drop in silence."""
    plain = module.get_args

    @functools.wraps(plain)
    def get_args(args: Any = None) -> Any:
        from dft_llamafactory import arguments, conflicts
        from dft_plugin.errors import ConflictError

        request = arguments.read(sys.argv[1:] if args is None else args)
        if request.loss is not None:
            raise ConflictError(map(str, conflicts.find({}, {**os.environ, "USE_V1": "1"})))
        return plain(args)

    vars(module)["get_args"] = get_args
