"""What is measured: each row of the table, with the variants that stand side by side in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks import family, ours, peers
from benchmarks.problem import HiddenInputs, LogitsInputs, Shape

Load = Callable[[], Callable[[Any], Any]]
"""Import what a variant needs, and return a function of the inputs that gives a loss."""


@dataclass(frozen=True)
class Variant:
    """One way to compute the loss.

    Attributes:
        name: as it stands in the report.
        load: may raise, which makes a row that says why.
        own: whether it is ours; peers are timed in fewer rounds.
        dft: whether it computes DFT; plain cross-entropy is checked against that.
        checked: whether it computes one of the two at all; what does not, is tested elsewhere.
    """

    name: str
    load: Load
    own: bool = False
    dft: bool = True
    checked: bool = True


@dataclass(frozen=True)
class Case:
    """A row of the table, or several that are measured together.

    Attributes:
        key: for `--cases`.
        title: of its section in the report.
        shape: of the problem.
        variants: measured in turn.
        gemms: how many products the bare baseline has; 0 for none.
        grad: whether backward is run.
        on_logits: whether the logits exist beforehand.
        isa: what ONEDNN_MAX_CPU_ISA must say when the process starts; empty: nothing.
    """

    key: str
    title: str
    shape: Shape
    variants: tuple[Variant, ...]
    gemms: int = 0
    grad: bool = True
    on_logits: bool = False
    isa: str = ""

    def inputs(self, shape: Shape, *, last_ignored: bool = False) -> Any:
        """Draw the problem at a shape."""
        return (LogitsInputs if self.on_logits else HiddenInputs)(shape, last_ignored=last_ignored)


def _own(name: str, make: Callable[..., Any], *args: Any) -> Variant:
    return Variant(name, partial(make, *args), own=True)


AUTO = _own("ours (kernel: auto)", ours.lean, "auto")
CHUNKED = _own("ours (kernel: chunked)", ours.lean, "chunked")

MATERIALISED = (
    Variant("cross-entropy (SFT, logits in float32)", partial(peers.on_hidden, peers.sft), dft=False),
    Variant("the paper's line", partial(peers.on_hidden, peers.one_liner)),
    Variant("LLaMA-Factory", partial(peers.on_hidden, peers.llama_factory)),
    Variant("ms-swift", partial(peers.on_hidden, peers.ms_swift)),
)
FUSED = (
    Variant("TRL", peers.trl),
    Variant("Liger, per token", peers.liger),
    Variant("Cut Cross-Entropy, compiled", peers.cce),
    Variant("torch linear_cross_entropy, per token", partial(peers.torch_fused, "none")),
)
PEERS = MATERIALISED + FUSED
SOME = (AUTO, MATERIALISED[0], FUSED[0])
ON_LOGITS = (
    _own("ours, in place", ours.logits_overwritten),
    _own("ours, logits kept", ours.logits_kept),
    Variant("cross-entropy (SFT, logits in float32)", partial(peers.on_logits, peers.sft), dft=False),
    Variant("the paper's line", partial(peers.on_logits, peers.one_liner)),
    Variant("LLaMA-Factory", partial(peers.on_logits, peers.llama_factory)),
    Variant("ms-swift", partial(peers.on_logits, peers.ms_swift)),
)


def _family(name: str, make: Callable[..., Any], *args: Any, **options: Any) -> Variant:
    return Variant(name, partial(make, *args, **options), own=True, checked=False)


FAMILY = (
    AUTO,
    _family("sequence scope (iw_sft)", family.sequence_scope),
    _family("batch scope", family.batch_scope),
    _family("entropy of the top 20 (eaft)", family.top_k_entropy),
    _family("a reference's log p (prift)", family.reference, "prift", "ref_logp"),
    _family("a reference's distribution (asft)", family.reference, "asft", distribution=True),
)

EMULATED, NO_BF16 = "bf16-emulated", "AVX512_CORE"
"""Half precision as most CPUs have it, that multiply float32 only; what multiplies there reads its limit once,
when it is loaded."""

GROWTH_HIDDEN = 256
"""Of the growth cases, so that 16,384 tokens take seconds: what grows is the same."""


def cases(shape: Shape) -> dict[str, Case]:
    """Return all cases around a shape: the default one is that of the table."""
    trained, half = replace(shape, trained=True), replace(shape, half=True)
    bf16, few = replace(shape, dtype="bfloat16"), replace(shape, tokens=min(shape.tokens, 384))
    stats = (AUTO, _own("with nll, p, w", ours.with_stats, "auto"), _own("with entropy", ours.with_entropy, "auto"))
    found = [
        Case("frozen", "Frozen head, float32", shape, (AUTO, CHUNKED, *PEERS), gemms=2),
        Case("trained", "Trained head, float32", trained, (AUTO, *PEERS), gemms=3),
        Case("lora", "LoRA on the head, float32", replace(shape, rank=16), (AUTO, *PEERS), gemms=2),
        Case("bf16", "Frozen head, bfloat16", bf16, (AUTO, CHUNKED, *PEERS), gemms=2),
        Case(EMULATED, "Frozen head, bfloat16, on a CPU without it", bf16, SOME, gemms=2, isa=NO_BF16),
        Case("half", "Half of the labels ignored, float32", half, SOME, gemms=2),
        Case("eval", "Evaluation, float32", shape, (AUTO, MATERIALISED[0]), gemms=1, grad=False),
        Case("stats", "Statistics, float32", shape, stats),
        Case("family", "Objectives that know more than a row, frozen head, float32", shape, FAMILY, gemms=2),
        Case("logits", "Logits that exist, float32", few, ON_LOGITS, on_logits=True),
        Case("logits-bf16", "Logits that exist, bfloat16", replace(few, dtype="bfloat16"), ON_LOGITS, on_logits=True),
        *_growth(replace(shape, hidden=min(shape.hidden, GROWTH_HIDDEN))),
    ]
    return {case.key: case for case in found}


def _growth(shape: Shape) -> list[Case]:
    tokens = [shape.tokens * factor // 4 for factor in (1, 4, 16, 32)]
    vocabs = [shape.vocab * size // 151_936 for size in (32_768, 65_536, 131_072, 262_144)]
    shapes = [replace(shape, tokens=n) for n in tokens] + [replace(shape, vocab=v) for v in vocabs]
    return [
        Case(
            f"growth-{'trained' if trained else 'frozen'}-{point.tokens}-{point.vocab}",
            "Growth, float32",
            replace(point, trained=trained),
            (AUTO,),
            gemms=3 if trained else 2,
        )
        for trained in (False, True)
        for point in shapes
    ]


TIMED = ("frozen", "trained", "bf16", "half", "eval", "stats", "family", "logits", "logits-bf16", "growth")
WEIGHED = ("frozen", "trained", "lora", "family", "logits", "logits-bf16", "growth")
"""Cases whose time, and whose memory, is measured; a prefix names all that begin with it."""
