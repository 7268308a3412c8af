"""What `dft autoload enable` does to `llamafactory.v1.config.arg_parser`: v1's other commands refuse our line."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any


def patch(module: ModuleType) -> None:
    """Let `get_args` refuse `loss:`, which ALLOW_EXTRA_KEYS would drop in silence.

    `run_sft` calls it, too; there our line was taken out before (see `autoload_v1`).
    """
    plain = module.get_args

    @functools.wraps(plain)
    def get_args(args: Any = None) -> Any:
        from dft_llamafactory import arguments
        from dft_plugin.errors import ConflictError

        request = arguments.read(sys.argv[1:] if args is None else args)
        if request.loss is not None:
            raise ConflictError([REFUSAL])
        return plain(args)

    vars(module)["get_args"] = get_args


REFUSAL = (
    "`loss`: of LLaMA-Factory's v1 commands only `train` and `sft` can train it; the others (`rm`, `dpo`, ...) have "
    "losses of their own. Start `USE_V1=1 llamafactory-cli sft`, or leave out `loss:`."
)
