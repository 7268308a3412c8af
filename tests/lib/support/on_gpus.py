"""accelerate knows ranks that share a model on GPUs only: have it take a CPU's processes for GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType


@contextmanager
def on_gpus() -> Iterator[None]:
    """Inside, a state that is made of several processes on a CPU says that they have a GPU each."""
    plain = PartialState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init
    try:
        yield
    finally:
        PartialState.__init__ = plain
