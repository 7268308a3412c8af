"""What the head of a training step costs, on paper: operations over rates, bytes over bandwidths.

A roofline: a GEMM takes the longer of its operations and its bytes; what goes over logits or over a gradient beside
the GEMMs is added to it. Nothing is known of launches, of caches, or of how well a library fills a device.

Shapes: T scored tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dft_plugin.kernels.budget import chunk_rows

HALF, FLOAT = 2, 4
"""Bytes of a number."""

GEMM_SHARE, MEMORY_SHARE = 0.75, 0.9
"""Of a data sheet's rates, what large GEMMs and copies reach: assumed, until a card has been measured."""

POINTWISE_BYTES = 2 * HALF
"""Of the chunk's kernel, for each logit: one read and one write; the second read comes from the cache."""

FIRST_BYTES, LATER_BYTES = FLOAT, 2 * FLOAT
"""For each number of a trained weight: the first chunk writes its gradient, each later one reads and writes it."""

FINISH_BYTES = FLOAT + HALF
"""And at the end: multiplied by the upstream factor and rounded to the dtype of the weight, in one pass."""

MATERIALISED_BYTES = 38
"""For each logit, beside the GEMMs: to float32 (2 + 4), log-softmax (2 reads, a write), its gradient filled (4), the
backward pass of log-softmax (2 reads, a write), to half precision (4 + 2)."""

MATERIALISED_PEAK = 14
"""Bytes for each logit that are held at one time: logits, log-softmax, the gradients on both sides of it."""


@dataclass(frozen=True)
class Device:
    """A card, by its data sheet.

    Attributes:
        name: of the card.
        key: a driver's name of it, without the vendor's.
        tflops: of dense half precision with float32 sums.
        gb_per_s: of its memory.
        gb: of memory.
        processors: multiprocessors.
        source: the vendor's document.
    """

    name: str
    key: str
    tflops: float
    gb_per_s: float
    gb: int
    processors: int
    source: str

    @property
    def flops(self) -> float:
        """Operations a second that GEMMs reach."""
        return self.tflops * 1e12 * GEMM_SHARE

    @property
    def bandwidth(self) -> float:
        """Bytes a second that a pass over memory reaches."""
        return self.gb_per_s * 1e9 * MEMORY_SHARE

    def measured(self, tflops: float, gb_per_s: float) -> Device:
        """Return the card with rates that were measured, instead of shares of the data sheet's."""
        return replace(self, tflops=tflops / GEMM_SHARE, gb_per_s=gb_per_s / MEMORY_SHARE)


DEVICES = (
    Device("H100 SXM", "H100 80GB HBM3", 989, 3350, 80, 132, "NVIDIA H100 data sheet (1,979 TFLOP/s with sparsity)"),
    Device("H200", "H200", 989, 4800, 141, 132, "NVIDIA H200 data sheet (1,979 TFLOP/s with sparsity)"),
    Device("A100 80 GB SXM", "A100-SXM4-80GB", 312, 2039, 80, 108, "NVIDIA A100 80 GB data sheet"),
    Device("L40S", "L40S", 362, 864, 48, 142, "NVIDIA L40S data sheet (733 TFLOP/s with sparsity)"),
    Device(
        "RTX 4090",
        "GeForce RTX 4090",
        165,
        1008,
        24,
        128,
        "NVIDIA Ada architecture white paper, FP16 with FP32 accumulate",
    ),
    Device("T4 (float16)", "T4", 65, 320, 16, 40, "NVIDIA T4 data sheet"),
)


def device_of(name: str) -> Device | None:
    """Return the card that a driver's name means, or None.

    The whole name counts, but for the vendor's: of an H100 there are PCIe and NVL, of an A100 40 GB, of a 4090 a D and
    a laptop's, each with rates of its own, and `T4` is a part of T400.
    """
    bare = name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    return next((device for device in DEVICES if device.key == bare), None)


@dataclass(frozen=True)
class Head:
    """Sizes of a head, and whether it is trained."""

    name: str
    width: int
    vocab: int
    trained: bool = False


HEADS = (
    Head("Qwen2.5 0.5B", 896, 151_936),
    Head("Qwen2.5 1.5B", 1536, 151_936),
    Head("Qwen2.5 3B", 2048, 151_936),
    Head("Qwen2.5 7B", 3584, 152_064),
    Head("Qwen2.5 14B, 32B", 5120, 152_064),
    Head("Qwen2.5 72B", 8192, 152_064),
    Head("Llama 3 8B", 4096, 128_256),
    Head("Llama 3 70B", 8192, 128_256),
    Head("Gemma 3 1B", 1152, 262_144),
    Head("Gemma 3 4B", 2560, 262_208),
    Head("Gemma 3 12B", 3840, 262_208),
    Head("Gemma 3 27B", 5376, 262_208),
)
"""`hidden_size` and `vocab_size` of the models' own config.json."""


@dataclass(frozen=True)
class Cost:
    """Of one forward and backward pass of head and loss.

    Attributes:
        seconds: of it.
        gemm_seconds: of its bare GEMMs.
        memory: bytes beyond inputs and the gradients that any loss leaves behind.
        rows: of a chunk; T where there are no chunks.
    """

    seconds: float
    gemm_seconds: float
    memory: int
    rows: int

    @property
    def ratio(self) -> float:
        """Times the bare GEMMs; NaN where there are none."""
        return self.seconds / self.gemm_seconds if self.gemm_seconds else math.nan


def gemm_seconds(device: Device, tokens: int, head: Head, grad: bool = True) -> float:
    """Predict the products alone, with all rows at once."""
    products = (3 if head.trained else 2) if grad else 1
    operations = 2 * tokens * head.vocab * head.width
    # Each reads or writes all three: logits, weight or its gradient, hidden states or theirs.
    moved = HALF * (tokens * head.vocab + head.vocab * head.width + tokens * head.width)
    return products * max(operations / device.flops, moved / device.bandwidth)


def chunked(device: Device, tokens: int, head: Head, scratch_bytes: int | None = None, grad: bool = True) -> Cost:
    """Predict our kernel.

    Args:
        device: where it runs.
        tokens: T.
        head: sizes.
        scratch_bytes: bound on the chunk; None: the default, where memory is plenty.
        grad: whether there is a backward pass.
    """
    if not tokens:
        return Cost(0.0, 0.0, 0, 0)
    trained = head.trained and grad
    rows = chunk_rows(
        "cuda",
        HALF * head.vocab,
        scratch_bytes,
        tokens=tokens,
        weight_trained=trained,
        width=head.width,
        processors=device.processors,
    )
    rows = min(rows, tokens)
    sizes = [rows] * (tokens // rows) + ([tokens % rows] if tokens % rows else [])
    seconds = sum(gemm_seconds(device, size, head, grad) for size in sizes)
    moved = POINTWISE_BYTES * tokens * head.vocab
    memory = HALF * rows * head.vocab
    if trained:
        moved += (FIRST_BYTES + LATER_BYTES * (len(sizes) - 1) + FINISH_BYTES) * head.vocab * head.width
        memory += FLOAT * head.vocab * head.width
    return Cost(seconds + moved / device.bandwidth, gemm_seconds(device, tokens, head, grad), memory, rows)


def materialised(device: Device, tokens: int, head: Head) -> Cost:
    """Predict what transformers does: all logits, cross-entropy in float32."""
    bare = gemm_seconds(device, tokens, head)
    logits = tokens * head.vocab
    return Cost(bare + MATERIALISED_BYTES * logits / device.bandwidth, bare, MATERIALISED_PEAK * logits, tokens)


def table_of_heads(device: Device, tokens: int) -> list[str]:
    """Return a table: every head on one card."""
    lines = [
        "| | head | bare GEMMs, ms | ours, times that | chunk, rows | ours, MiB | materialised, times that | MiB |",
        "|" + " --- |" * 8,
    ]
    for head in HEADS:
        for trained in (False, True):
            lines.append(_row(head.name, device, tokens, replace(head, trained=trained)))
    return lines


def table_of_devices(head: Head, tokens: int) -> list[str]:
    """Return a table: one head on every card."""
    lines = table_of_heads(DEVICES[0], tokens)[:2]
    for device in DEVICES:
        for trained in (False, True):
            lines.append(_row(device.name, device, tokens, replace(head, trained=trained)))
    return lines


def fits(device: Device, tokens: int, head: Head, memory: int) -> bool:
    """Say whether what is held for the loss fits a card beside its inputs and gradients alone."""
    weights = head.vocab * head.width * (2 if head.trained else 1)
    return memory + HALF * (weights + 2 * tokens * head.width) <= device.gb * 1e9


def _row(name: str, device: Device, tokens: int, head: Head) -> str:
    own, other = chunked(device, tokens, head), materialised(device, tokens, head)
    cells = [
        name,
        "trained" if head.trained else "frozen",
        f"{own.gemm_seconds * 1000:.1f}",
        f"{own.ratio:.2f}",
        f"{own.rows:,}",
        _mb(own.memory) + _mark(fits(device, tokens, head, own.memory)),
        f"{other.ratio:.2f}",
        _mb(other.memory) + _mark(fits(device, tokens, head, other.memory)),
    ]
    return f"| {' | '.join(cells)} |"


def _mark(fit: bool) -> str:
    return "" if fit else " (does not fit)"


def _mb(size: int) -> str:
    return f"{math.ceil(size / (1 << 20)):,}"
