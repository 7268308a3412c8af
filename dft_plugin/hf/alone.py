"""A labelled pass stands in the model's own methods for a while: one at a time, and none inside another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dft_plugin.errors import UnsupportedModelError


class Alone:
    """Lets one labelled pass through after the other, whatever the threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._inside = False

    @contextmanager
    def passing(self, model: nn.Module) -> Iterator[None]:
        """Run a labelled pass inside this block.

        Raises:
            UnsupportedModelError: this thread is in one.
        """
        with self._lock:
            if self._inside:
                name = type(model).__name__
                raise UnsupportedModelError(
                    f"{name} was called with labels from inside one of its own labelled passes, by its forward or by "
                    "a hook: the inner call would be answered without its head, which does not run there. Train it "
                    "without `loss:`, or call without labels inside and score the logits with dft_plugin.token_loss."
                )
            self._inside = True
            try:
                yield
            finally:
                self._inside = False
