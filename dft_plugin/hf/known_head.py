"""What the first batches showed of a head: whether it is as it was read, and whether chunks of it can be called.

Shapes: T scored tokens, K checked ones, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dft_plugin.core.plan import LossPlan
from dft_plugin.hf import calibration
from dft_plugin.hf.called import CalledHead
from dft_plugin.hf.head import ReadableHead
from dft_plugin.hf.interception import without_dropout
from dft_plugin.hf.untouched import untouched
from dft_plugin.kernels import Head, Transform


class KnownHead:
    """Asks a head once, inside its forward, what holds for all batches."""

    def __init__(self) -> None:
        self._compared = self._apart = self._linear = False
        self._distrusted: str | None = None

    def distrust(
        self, plan: LossPlan, reading: ReadableHead, hidden_TD: Tensor, project: CalledHead, transform: Transform
    ) -> str | None:
        """Compare the head as it was read with the head as it is called; returns the reason not to trust it."""
        hidden_KD = hidden_TD[: calibration.CHECKED_POSITIONS].detach()
        if self._compared or not hidden_KD.shape[0]:
            return self._distrusted
        with torch.no_grad(), untouched(reading.owner), without_dropout(reading.owner):
            head = reading.head(hidden_KD, transform)
            assert isinstance(head, Head)
            hidden_KD = hidden_KD.to(head.weight_VD.device)
            project.gather()
            self._distrusted = calibration.check_head(plan, head, hidden_KD, project(hidden_KD))
        self._compared = True
        return self._distrusted

    def trained_elsewhere(self, project: CalledHead, hidden_TD: Tensor) -> tuple[Tensor, ...]:
        """Return what a hook or a patched forward of the head trains besides it; asked in each pass with a graph.

        Raises:
            MixedHeadError: the head cannot be called on chunks of tokens, each with gradients of its own.
        """
        few = 4 * project.row_multiple
        with untouched(project.owner), without_dropout(project.owner):
            if not self._apart and hidden_TD.shape[0] >= few:
                with torch.no_grad():
                    project.require_rows_apart(hidden_TD)
                self._apart = True
            if not torch.is_grad_enabled() or not hidden_TD.shape[0]:
                return ()
            elsewhere = project.trained_elsewhere(hidden_TD)
            if not self._linear:
                project.require_linear(hidden_TD)
                self._linear = True
            return elsewhere
