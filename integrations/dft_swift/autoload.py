"""What `dft autoload enable` does to `swift.pipelines`: `swift sft` and `swift pt` read our words, others refuse."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

from dft_plugin.config.refusals import without_traceback
from dft_plugin.errors import ConflictError

_MAINS = {"swift.pipelines.train.sft": "sft_main", "swift.pipelines.train.pretrain": "pretrain_main"}

_REFUSALS = {
    "rlhf": "`loss`: `swift rlhf` trains a loss of its own. Train with `swift sft`, or leave out `loss:`.",
    "megatron": (
        "`loss`: `megatron` computes its loss inside Megatron, from logits that are split over ranks. ms-swift's own "
        "`enable_dft_loss: true` is the better one there: it works on the split logits. Use it instead of `loss:`."
    ),
    "": "`loss`: of ms-swift's commands only `swift sft` and `swift pt` can train it. Leave out `loss:`.",
}


def patch(module: ModuleType) -> None:
    """Patch one of ms-swift's modules, by its name."""
    if module.__name__ in _MAINS:
        _honour(module, _MAINS[module.__name__])
    else:
        _refuse(module)


def _honour(module: ModuleType, name: str) -> None:
    """Have a main function run with the loss that its command line asks for; without one it gets what it was given."""
    plain = getattr(module, name)

    @functools.wraps(plain)
    def main(args: Any = None) -> Any:
        from dft_swift import arguments

        if args is not None and not isinstance(args, (list, tuple)):
            return plain(args)
        without_traceback("swift")
        loss, words = arguments.take(sys.argv[1:] if args is None else args)
        if loss is None:
            return plain(args)
        from dft_swift.run import run_with_loss

        return run_with_loss(plain, words, loss)

    vars(module)[name] = main


def _refuse(module: ModuleType) -> None:
    """Let the parser of all pipelines refuse a loss that nobody has taken out before."""
    pipeline = module.SwiftPipeline
    plain = pipeline._parse_args

    @functools.wraps(plain)
    def parse_args(self: Any, args: Any = None) -> Any:
        from dft_swift import arguments

        if args is None or isinstance(args, (list, tuple)):
            without_traceback("swift")
            loss, _ = arguments.take(sys.argv[1:] if args is None else args)
            if loss is not None:
                raise ConflictError([_REFUSALS[_kind(type(self))]])
        return plain(self, args)

    pipeline._parse_args = parse_args


def _kind(pipeline: type) -> str:
    names = [cls.__name__ for cls in pipeline.__mro__]
    if any(name.startswith("Megatron") for name in names):
        return "megatron"
    return "rlhf" if "SwiftRLHF" in names else ""
