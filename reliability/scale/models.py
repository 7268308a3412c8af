"""The models of docs/scale.md by their configs, and how each is laid out on many devices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """Sizes of a decoder.

    Attributes:
        name: of the model.
        width: hidden size.
        vocab: rows of the head, which is not tied.
        layers: of it.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: of one head.
        mlp: width of a layer's MLP, of one expert where there are several.
        experts: of a layer; 1: none.
        active: experts that see a token.
        source: of these numbers.
    """

    name: str
    width: int
    vocab: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    experts: int = 1
    active: int = 1
    source: str = ""

    def _layer(self, experts: int) -> int:
        attention = self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
        router = self.width * self.experts if self.experts > 1 else 0
        return attention + router + 3 * experts * self.width * self.mlp

    @property
    def parameters(self) -> int:
        """All of them, but for norms and biases."""
        return 2 * self.vocab * self.width + self.layers * self._layer(self.experts)

    @property
    def at_work(self) -> int:
        """Parameters that multiply a token: the experts that see it, and the head, but not the embedding."""
        return self.vocab * self.width + self.layers * self._layer(self.active)


SEVEN = Model(
    "Qwen2.5-7B",
    width=3584,
    vocab=152_064,
    layers=28,
    heads=28,
    kv_heads=4,
    head_dim=128,
    mlp=18_944,
    source="the model's config.json, as in benchmarks/cost.py",
)
SEVENTY = Model(
    "Llama-3.1-70B",
    width=8192,
    vocab=128_256,
    layers=80,
    heads=64,
    kv_heads=8,
    head_dim=128,
    mlp=28_672,
    source="the model's config.json, as in benchmarks/cost.py; arXiv 2407.21783, table 3",
)
MOE = Model(
    "Qwen3-235B-A22B",
    width=4096,
    vocab=151_936,
    layers=94,
    heads=64,
    kv_heads=4,
    head_dim=128,
    mlp=1536,
    experts=128,
    active=8,
    source="THUDM/slime, scripts/models/qwen3-235B-A22B.sh; it comes to the 235 and 22 of its name",
)
MODELS = (SEVEN, SEVENTY, MOE)


@dataclass(frozen=True)
class Layout:
    """How a model lies on devices, as far as the loss can tell.

    Attributes:
        model: that is trained.
        split: over how many devices the head's rows are split (tensor parallelism); 1: each has the whole head while
            it computes the loss (FSDP2 gathers it, expert parallelism leaves it alone).
        how: in words.
    """

    model: Model
    split: int
    how: str


LAYOUTS = (
    Layout(SEVEN, 1, "FSDP2 over all GPUs"),
    Layout(SEVENTY, 1, "FSDP2 over all GPUs"),
    Layout(SEVENTY, 8, "tensor parallel in 8, FSDP2 over the rest"),
    Layout(MOE, 1, "FSDP2 and expert parallel"),
    Layout(MOE, 8, "tensor parallel in 8 for the head, expert parallel, FSDP2 over the rest"),
)
GPUS = (8, 64, 1024)
