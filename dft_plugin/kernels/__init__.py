"""Kernels: hidden states and a head, or logits, to a loss sum and statistics."""

from dft_plugin.kernels.budget import beside_another
from dft_plugin.kernels.choice import auto, choose
from dft_plugin.kernels.linear_blocked import blocked, hands_over
from dft_plugin.kernels.linear_chunked import chunked
from dft_plugin.kernels.linear_opaque import opaque
from dft_plugin.kernels.linear_sharded import vocab_parallel
from dft_plugin.kernels.logits import may_overwrite, score_logits, score_logits_
from dft_plugin.kernels.naive import reference
from dft_plugin.kernels.shard import ShardedHead, VocabShard
from dft_plugin.kernels.types import IDENTITY, Head, Kernel, KernelResult, LowRank, OpaqueHead, Transform

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
    "beside_another",
    "blocked",
    "choose",
    "chunked",
    "hands_over",
    "may_overwrite",
    "opaque",
    "reference",
    "score_logits",
    "score_logits_",
    "vocab_parallel",
]
