"""What `dft autoload enable` does to `llamafactory.v1.config.arg_parser`: v1's other commands refuse our line."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from dft_llamafactory.autoload import wrap
from dft_plugin.errors import ConflictError

REFUSAL = (
    "`loss`: of LLaMA-Factory's v1 commands only `train` and `sft` can train it; the others (`rm`, `dpo`, ...) have "
    "losses of their own. Start `USE_V1=1 llamafactory-cli sft`, or leave out `loss:`."
)


def patch(module: ModuleType) -> None:
    """Let `get_args` refuse `loss:`.

    `run_sft` calls it, too; there our line was taken out before (see `autoload_v1`).
    """
    wrap(module, "get_args", _refuse)


def _refuse(*_: Any) -> None:
    raise ConflictError([REFUSAL])
