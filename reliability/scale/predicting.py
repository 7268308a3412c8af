"""What the loss costs on many devices, on paper: the cost model of one card, and what goes over the wire.

Shapes: T scored tokens of a micro-batch on one device, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from benchmarks import cost
from dft_plugin.core.bands import BANDS
from dft_plugin.core.statistics import Sum
from dft_plugin.kernels.budget import chunk_rows
from reliability.scale.counting import Collective
from reliability.scale.models import Layout, Model

CARD = cost.DEVICES[0]
TOKENS = 8192
"""T: one row of 8,192 tokens, or eight of 1,024, all of them targets."""

LINK = 450e9
"""Bytes a second that one GPU sends to those of its own machine: half of the 900 GB/s of an H100's data sheet, which
counts both directions."""

WIRE = 50e9
"""The same to another machine: one port of 400 Gbit/s for each GPU."""

HOP = 10e-6
"""Seconds of one step of a small reduction, from one machine to the next: assumed, measured by nobody here."""

INDICES = 2**31


def head_of(layout: Layout, trained: bool) -> cost.Head:
    """Return the part of the head that one device multiplies by."""
    vocab = math.ceil(layout.model.vocab / layout.split)
    return cost.Head(layout.model.name, layout.model.width, vocab, trained)


def log_bytes(names: int = 0) -> int:
    """Bytes of the one reduction of a log: float64 sums, counts by bands of p, and the loss that went backward.

    Args:
        names: statistics of the objective's own, which take two numbers each.
    """
    return 8 * (len(Sum) + 2 * names + BANDS + 1)


def split_step(tokens: int, rows: int, width: int, ranks: int, sums: int, item: int) -> list[Collective]:
    """Return the collectives of one call of `vocab_parallel_token_loss`, in their order.

    Args:
        tokens: T.
        rows: C.
        width: D.
        ranks: that share the vocabulary.
        sums: of a row: the target's logit and the sum of exponentials, and what the objective needs besides.
        item: bytes of a number of the hidden states' gradient.
    """
    sizes = [min(rows, tokens - start) for start in range(0, tokens, rows)]
    chunks = [Collective("all-reduce", 4 * size * part) for size in sizes for part in (1, sums)]
    # Whether all were given the same; at the end the gradient of the hidden states, for all tokens at once.
    return [Collective("all-gather", 8 * 4 * ranks), *chunks, Collective("all-reduce", item * tokens * width)]


@dataclass(frozen=True)
class Prediction:
    """Of the loss of one micro-batch on one device.

    Attributes:
        loss: seconds of head and loss, forward and backward.
        products: seconds of the head's products alone, which any loss has.
        step: seconds of the model's products.
        wire: seconds that the collectives of a split vocabulary take on the links.
        memory: bytes beyond the inputs and the gradients that any loss leaves behind.
        materialised: the same where all logits exist.
        rows: C.
        sent: bytes that a device sends for each token.
    """

    loss: float
    products: float
    step: float
    wire: float
    memory: int
    materialised: int
    rows: int
    sent: float

    @property
    def beyond(self) -> float:
        """Seconds beyond the head's products, as a part of the model's."""
        return (self.loss - self.products + self.wire) / self.step


def predict(layout: Layout, trained: bool, tokens: int = TOKENS) -> Prediction:
    """Predict one layout, on one of its devices."""
    head = head_of(layout, trained)
    rows = None
    if layout.split > 1:
        rows = chunk_rows("cuda", cost.HALF * head.vocab, None, tokens=tokens, weight_trained=True)
    found = cost.chunked(CARD, tokens, head, None if rows is None else rows * head.vocab * cost.HALF)
    sent = []
    if layout.split > 1:
        sent = split_step(tokens, found.rows, layout.model.width, layout.split, 2, cost.HALF)
    sent_bytes = sum(one.sent(layout.split) for one in sent)
    return Prediction(
        found.seconds,
        found.gemm_seconds,
        step_seconds(layout.model, trained, tokens) / layout.split,
        sent_bytes / LINK,
        found.memory,
        cost.materialised(CARD, tokens, head).memory,
        found.rows,
        sent_bytes / tokens,
    )


def step_seconds(model: Model, trained: bool, tokens: int) -> float:
    """Predict the model's products on one device: 6 operations for a parameter and token, 4 where only LoRA trains."""
    return (6 if trained else 4) * model.at_work * tokens / CARD.flops


def state_bytes(model: Model, trained: bool) -> int:
    """Weights in bfloat16; trained by Adam in mixed precision, 16 bytes for each parameter (arXiv 1910.02054)."""
    return (16 if trained else 2) * model.parameters


def log_seconds(gpus: int) -> float:
    """Predict the reduction of a log: a tree, up and down, one hop each time the ranks double."""
    return 2 * math.ceil(math.log2(gpus)) * HOP


def gathered(layout: Layout) -> float:
    """Bytes that a device sends for each token where the head is called and its logits are gathered."""
    whole = Collective("all-gather", cost.HALF * layout.model.vocab)
    back = Collective("all-reduce", cost.HALF * layout.model.width)
    return whole.sent(layout.split) + back.sent(layout.split)


def fits(layout: Layout, trained: bool, gpus: int) -> bool:
    """Say whether weights, gradients, optimizer and loss fit; activations come on top."""
    head = replace(head_of(layout, trained))
    gathered_head = 2 * head.vocab * head.width * cost.HALF
    each = state_bytes(layout.model, trained) / gpus + predict(layout, trained).memory + gathered_head
    return each <= CARD.gb * 1e9
