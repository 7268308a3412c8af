"""Whether the logits of a pass may be overwritten by their gradient."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch

from dft_plugin.hf.interception import Seen
from dft_plugin.kernels import may_overwrite


def logits_are_spare(model: Any, seen: Seen) -> bool:
    """Whether nobody reads the logits of this pass again, once they are scored: neither autograd, a hook nor a holder.

    Args:
        model: whose pass it was.
        seen: with all that holds them, as far as we know.
    """
    head = model.get_output_embeddings()
    hooked = head is not None and any(module._forward_hooks for module in head.modules())
    if seen.auxiliary is not None or hooked or not may_overwrite(seen.logits):
        return False
    # Counted in the same way, whatever a release of Python counts.
    return _holders(seen) == _holders(replace(seen, logits=_alone(view=seen.logits._base is not None)))


def _alone(*, view: bool) -> torch.Tensor:
    """Return a tensor that whoever asks is the only one to hold, of memory of its own or of a base's."""
    return torch.empty(1).view(1) if view else torch.empty(1)


def _holders(seen: Seen) -> tuple[int, int, int]:
    """Count what holds the logits, what they are a view of, and their memory: other views, tensors without a graph."""
    base = 0 if seen.logits._base is None else sys.getrefcount(seen.logits._base)
    return sys.getrefcount(seen.logits), base, torch._C._storage_Use_Count(seen.logits.untyped_storage()._cdata)
