"""docs/scale.md: the tables from the cost model and from what was counted, with the words around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from benchmarks import cost
from dft_plugin.core.bands import BANDS
from dft_plugin.core.statistics import Sum
from dft_plugin.kernels.budget import chunk_rows
from reliability.scale import predicting, ranks
from reliability.scale.counting import Collective
from reliability.scale.models import GPUS, LAYOUTS, MODELS
from reliability.scale.predicting import CARD, TOKENS, predict

MIB = 2**20
Rows = Sequence[dict[str, Any]]


def text(rows: Rows) -> str:
    """Return the page."""
    split = next(layout for layout in LAYOUTS if layout.split > 1)
    words = Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
    return words.substitute(
        most=f"{100 * max(predict(layout, trained).beyond for layout in LAYOUTS for trained in (False, True)):.1f}",
        log_bytes=predicting.log_bytes(),
        split_bytes=f"{predict(split, True).sent:,.0f}",
        split_model=f"{split.model.name}, R = {split.split}",
        gathered_bytes=f"{predicting.gathered(split):,.0f}",
        gb=CARD.gb,
        sums=len(Sum),
        bands=BANDS,
        models=_models(),
        inputs=_inputs(),
        loss=_loss(),
        state=_state(),
        split=_split(),
        counted=_counted(rows),
        log=_log(),
        limits=_limits(),
    )


def _table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *lines))


def _models() -> str:
    return _table(
        ["model", "D", "V", "parameters, 10^9", "that multiply a token", "source of the sizes"],
        [
            [
                model.name,
                f"{model.width:,}",
                f"{model.vocab:,}",
                f"{model.parameters / 1e9:.1f}",
                f"{model.at_work / 1e9:.1f}",
                model.source,
            ]
            for model in MODELS
        ],
    )


def _inputs() -> str:
    reached = "77 % and 89 % on one H100 ([report](benchmarks/2026-11-26-h100.md))"
    return _table(
        ["input", "value", "source"],
        [
            ["card", CARD.name, f"{CARD.source}: {CARD.tflops:g} TFLOP/s, {CARD.gb_per_s:,} GB/s, {CARD.gb} GB"],
            [
                "what products and copies reach",
                f"{cost.GEMM_SHARE:.0%} and {cost.MEMORY_SHARE:.0%} of it",
                f"assumed in benchmarks/cost.py; measured were {reached}",
            ],
            [
                "how far the model is off",
                "time 7 to 12 % too low (frozen), 4 % (trained)",
                "that H100; the part beyond the products was 0.11 to 0.18 of them where the model says 0.06 (frozen), "
                "0.12 to 0.17 where it says 0.13 (trained)",
            ],
            ["T", f"{TOKENS:,} targets of a micro-batch on a GPU", "assumed: one row of 8,192 tokens, or 8 of 1,024"],
            [
                "state",
                "16 bytes a parameter trained, 2 frozen",
                "Adam in mixed precision, arXiv 1910.02054; LoRA's own weights are left out",
            ],
            ["model's products", "6 operations a parameter and token, 4 with LoRA", "attention's are left out"],
            [
                "link within a machine",
                f"{predicting.LINK / 1e9:.0f} GB/s one way",
                "NVIDIA H100 data sheet: 900 GB/s both ways",
            ],
            ["hop of a small reduction", f"{predicting.HOP * 1e6:.0f} µs", "assumed; nothing of it was measured"],
            ["dtype", "bfloat16; sums and the gradient of the head's weight float32", "[kernels.md](kernels.md)"],
        ],
    )


def _loss() -> str:
    lines = []
    for layout in LAYOUTS:
        for trained in (False, True):
            found = predict(layout, trained)
            lines.append(
                [
                    layout.model.name,
                    layout.how,
                    "trained" if trained else "frozen",
                    f"{1e6 * found.products / TOKENS:.2f}",
                    f"{1e6 * found.loss / TOKENS:.2f}",
                    f"{100 * found.beyond:.1f}",
                    f"{found.rows:,}",
                    f"{found.memory / MIB:,.0f}",
                    f"{found.materialised / MIB:,.0f}",
                    f"{found.sent:,.0f}",
                ]
            )
    head = [
        "model",
        "layout",
        "head",
        "its products, µs",
        "with the loss, µs",
        "beyond the products, % of the model's",
    ]
    head += ["rows of a chunk", "memory, MiB", "all logits would be, MiB", "bytes sent"]
    return _table(head, lines)


def _state() -> str:
    lines = []
    for layout in (one for one in LAYOUTS if one.split == 1):
        for trained in (False, True):
            state = predicting.state_bytes(layout.model, trained)
            cells = []
            for gpus in GPUS:
                fit = "" if predicting.fits(layout, trained, gpus) else ", does not fit"
                cells.append(f"{state / gpus / 1e9:,.1f} GB{fit}")
            lines.append([layout.model.name, "full" if trained else "LoRA", *cells])
    return _table(["model", "", *(f"{gpus:,} GPUs" for gpus in GPUS)], lines)


def _split() -> str:
    lines = []
    for layout in (one for one in LAYOUTS if one.split > 1):
        found = predict(layout, True)
        calls = predicting.split_step(TOKENS, found.rows, layout.model.width, layout.split, 2, cost.HALF)
        lines.append(
            [
                layout.model.name,
                layout.split,
                len(calls),
                f"{found.sent:,.0f}",
                f"{1e6 * found.wire:,.0f}",
                f"{predicting.gathered(layout):,.0f}",
                f"{1e6 * predicting.gathered(layout) * TOKENS / predicting.LINK:,.0f}",
            ]
        )
    head = ["model", "R", "collectives of a call", "bytes sent for a token", "on the link, µs a call"]
    return _table([*head, "with gathered logits, bytes for a token", "on the link, µs a call"], lines)


def _counted(rows: Rows) -> str:
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        for number in sorted({row["ranks"] for row in rows}):
            stock, ours = (_steps(rows, number, case, who) for who in ("stock", "ours"))
            if case == "split vocabulary":
                expected = expected_split(number)
                verdict = "as the formula" if all(step == expected for step in ours) else "**not the formula**"
                lines.append([case, number, "", said(ours[-1]), verdict, ""])
            else:
                lines.append(
                    [case, number, said(stock[-1]), said(ours[-1]), _beyond(stock[-1], ours[-1]), _first(stock, ours)]
                )
    return _table(["", "ranks", "stock", "ours", "beyond the stock step", "once, in the first batches"], lines)


def _steps(rows: Rows, number: int, case: str, who: str) -> list[list[Collective]]:
    (row,) = [row for row in rows if (row["ranks"], row["case"], row["who"]) == (number, case, who)]
    return [[Collective(*one) for one in step] for step in row["steps"]]


def expected_split(number: int) -> list[Collective]:
    """Return what the formula says for the case that is counted, float32 on a CPU."""
    tokens, most = ranks.SPLIT_TOKENS, -(-ranks.VOCAB // number)
    rows = chunk_rows("cpu", most * cost.FLOAT, None, tokens=tokens, weight_trained=True)
    return predicting.split_step(tokens, rows, ranks.WIDTH, number, 2, cost.FLOAT)


def said(step: Sequence[Collective]) -> str:
    """Say what a step sends."""
    by_kind: dict[str, list[int]] = {}
    for kind, size in step:
        by_kind.setdefault(kind, []).append(size)
    return ", ".join(f"{len(sizes)} {kind} ({sum(sizes):,} B)" for kind, sizes in sorted(by_kind.items())) or "nothing"


def beyond(stock: Sequence[Collective], ours: Sequence[Collective]) -> tuple[list[Collective], list[Collective]]:
    """Return what ours has and stock has not, and the other way round."""
    mine, theirs = Counter(ours), Counter(stock)
    return sorted((mine - theirs).elements()), sorted((theirs - mine).elements())


def _beyond(stock: Sequence[Collective], ours: Sequence[Collective]) -> str:
    more, less = beyond(stock, ours)
    parts = [*([said(more)] if more else []), *([f"instead of {said(less)}"] if less else [])]
    return " ".join(parts) or "nothing"


def _first(stock: Sequence[Sequence[Collective]], ours: Sequence[Sequence[Collective]]) -> str:
    """Say what ours sends in the first steps, and neither stock nor ours in the last."""
    if len(ours) == 1:
        return ""
    steady = Counter(ours[-1]) - Counter(stock[-1])
    once = [Counter(mine) - Counter(theirs) - steady for theirs, mine in zip(stock, ours, strict=True)]
    more = [one for step in once for one in step.elements()]
    return said(more) if more else "nothing"


def _log() -> str:
    hops = [
        [f"{gpus:,}", f"{predicting.log_bytes():,}", f"{1e6 * predicting.log_seconds(gpus):,.0f}"] for gpus in GPUS
    ]
    return _table(["GPUs", "bytes", "predicted, µs"], hops)


def _limits() -> str:
    widest = max(MODELS, key=lambda model: model.vocab)
    whole = predicting.INDICES // widest.vocab
    rows = min(predict(layout, True).rows for layout in LAYOUTS if layout.split > 1)
    gradient = 4 * widest.vocab * 8192 / MIB
    return _table(
        ["what", "limit", "what happens there"],
        [
            [
                "indices of 32 bits",
                f"2^31: a chunk of 4,096 rows of {widest.vocab:,} logits has {4096 * widest.vocab:,}",
                f"logits that exist already (`kernel: logits`) reach it at {whole + 1:,} tokens; the Triton kernel "
                "counts where a row begins in 64 bits, and columns in 32",
            ],
            [
                "length of a sequence",
                "none of ours: tokens are counted, not sequences",
                "hidden states and their gradient are 4 D bytes for each token in bfloat16, whatever the loss",
            ],
            [
                "tokens between two logs",
                "2^53 (float64); 2^24 on `mps`, which has float32 alone",
                "beyond it counts are rounded: there, log before 16 million tokens",
            ],
            [
                "ranks of a split vocabulary",
                "a rank may hold no row at all",
                "the chunk follows the rank with most rows; the gradient of the hidden states does not shrink with R",
            ],
            [
                "waits of a split vocabulary",
                f"two small all-reduces for each chunk, here of {rows:,} rows or more",
                f"{TOKENS:,} tokens: {2 * -(-TOKENS // rows)} of them at most; a lower `scratch_mb` makes more",
            ],
            [
                "memory of a trained head",
                "4 V D bytes, its gradient in float32",
                f"{gradient:,.0f} MiB at V = {widest.vocab:,}, D = 8,192. FSDP2 does not shard it while the loss is "
                "computed; a split head divides it by R",
            ],
            [
                "a head that FSDP2 gathers",
                "2 V D bytes",
                "as in the stock step: it is the engine's, and the loss adds nothing to it",
            ],
            [
                "objectives that look at a whole batch",
                "one process, one micro-batch",
                "refused where the batch is split, on any number of GPUs",
            ],
            [
                "objectives that divide by weights",
                "one reduction of one number for each optimizer step",
                "their sum is known after the last micro-batch of the last rank",
            ],
            [
                "the first batch of sharded weights",
                "some hundred bytes for each rank",
                "gathered once in a run: below a megabyte on 1,024 ranks",
            ],
        ],
    )
