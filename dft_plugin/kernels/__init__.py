"""Kernels: hidden states and a head, or logits, to a loss sum and statistics."""

from dft_plugin.kernels.auto import auto, choose
from dft_plugin.kernels.base import IDENTITY, Head, Kernel, KernelResult, LowRank, OpaqueHead, Transform
from dft_plugin.kernels.blocked import blocked
from dft_plugin.kernels.chunked import chunked
from dft_plugin.kernels.logits import may_overwrite, score_logits, score_logits_
from dft_plugin.kernels.opaque import opaque
from dft_plugin.kernels.reference import reference
from dft_plugin.kernels.shard import ShardedHead, VocabShard
from dft_plugin.kernels.vocab_parallel import vocab_parallel

__all__ = [
    "IDENTITY",
    "Head",
    "Kernel",
    "KernelResult",
    "LowRank",
    "OpaqueHead",
    "ShardedHead",
    "Transform",
    "VocabShard",
    "auto",
    "blocked",
    "choose",
    "chunked",
    "may_overwrite",
    "opaque",
    "reference",
    "score_logits",
    "score_logits_",
    "vocab_parallel",
]
