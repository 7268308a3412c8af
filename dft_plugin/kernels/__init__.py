"""Kernels: hidden states and a head, or logits, to a loss sum and statistics."""

from dft_plugin.kernels.auto import auto, choose
from dft_plugin.kernels.base import IDENTITY, Head, Kernel, KernelResult, LowRank, OpaqueHead, Transform
from dft_plugin.kernels.blocked import blocked
from dft_plugin.kernels.chunked import chunked
from dft_plugin.kernels.logits import score_logits
from dft_plugin.kernels.opaque import opaque
from dft_plugin.kernels.reference import reference

__all__ = [
    "IDENTITY",
    "Head",
    "Kernel",
    "KernelResult",
    "LowRank",
    "OpaqueHead",
    "Transform",
    "auto",
    "blocked",
    "choose",
    "chunked",
    "opaque",
    "reference",
    "score_logits",
]
