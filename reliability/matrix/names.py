"""Rows and columns by name, and what the launcher must know of them. No torch: it starts processes and waits."""

from __future__ import annotations

from dataclasses import dataclass

TOLERANCE = 1e-6
"""Relative, in float32: the most that a cell may be away from one process."""


@dataclass(frozen=True)
class Row:
    """One way to split a run.

    Attributes:
        name: as the page has it.
        engine: the key of `engines.ENGINES`.
        world: number of processes.
        shares: how many of them are given rows of their own.
        nodes: how many torchrun agents start them; 1: none, the launcher does.
        alike: the engine that one process uses for the comparison; empty: the plain model.
        tolerance: relative.
        experts: whether its model has experts in every column.
    """

    name: str
    engine: str
    world: int = 2
    shares: int = 2
    nodes: int = 1
    alike: str = ""
    tolerance: float = TOLERANCE
    experts: bool = False

    def allows(self, gaps: dict[str, float]) -> bool:
        """Say whether differences are within the tolerance."""
        return all(gap <= self.tolerance for gap in gaps.values())


ROWS = (
    Row("DDP", "ddp"),
    Row("FSDP1", "fsdp1"),
    Row("FSDP2, root", "fsdp2"),
    Row("FSDP2, head apart", "fsdp2-head"),
    Row("FSDP2, norm and head", "fsdp2-norm-head"),
    Row("FSDP2, CPU offload", "fsdp2-offload"),
    Row("FSDP2, bfloat16, float32 reduction", "fsdp2-bf16", alike="fsdp2-bf16", tolerance=1e-2),
    Row("FSDP2 of transformers (DistributedConfig)", "hf-fsdp2"),
    Row("DeepSpeed, stage 0", "zero0"),
    Row("ZeRO-1", "zero1"),
    Row("ZeRO-2", "zero2"),
    Row("ZeRO-3", "zero3"),
    Row("ZeRO-3, offload", "zero3-offload"),
    Row("context parallel, torch", "cp", shares=1),
    Row("Ulysses, DeepSpeed", "ulysses", shares=1),
    Row("tensor parallel, torch plan", "tp", shares=1),
    Row("tensor parallel, transformers plan", "hf-tp", shares=1),
    Row("tensor parallel, AutoTP", "autotp", shares=1),
    Row("expert parallel, transformers", "hf-ep", experts=True),
    Row("HSDP, 2 x 2", "hsdp", world=4, shares=4),
    Row("HSDP of transformers, 2 x 2", "hf-hsdp", world=4, shares=4),
    Row("TP x DP, torch, 2 x 2", "tp-dp", world=4),
    Row("TP x DP of transformers, 2 x 2", "hf-tp-dp", world=4),
    Row("DDP, 4 processes", "ddp", world=4, shares=4),
    Row("two nodes of two, DDP", "ddp", world=4, shares=4, nodes=2),
    Row("two nodes of two, FSDP2", "fsdp2", world=4, shares=4, nodes=2),
)

BYPASSED = "forward taken over (must be refused)"
LEFT_OUT, STOPPED = "a NaN, `nonfinite: skip`", "a NaN, `nonfinite: error`"

COLUMNS = (
    "full, tied",
    "full, untied",
    "LoRA",
    "LoRA on the head",
    "modules_to_save",
    "DoRA on the head",
    "QLoRA",
    "MoE router loss",
    "checkpointing, reentrant",
    "checkpointing, not reentrant",
    "accumulation 3, uneven tokens",
    "all-masked micro-batch",
    "evaluation, partial last batch",
    "odd vocabulary",
    LEFT_OUT,
    STOPPED,
    BYPASSED,
)

EQUAL, DIFFERS, REFUSED = "equal", "differs", "refused"
FAILED, IMPOSSIBLE, HANGS = "failed", "impossible", "hangs"


def is_red(cell: dict[str, object]) -> bool:
    """Say whether the outcome of a cell is a fault."""
    if cell["column"] == BYPASSED and cell["outcome"] == REFUSED:
        # Noticed; or the row is refused as a whole, before anything is trained.
        return not str(cell["text"]).startswith(("NotActiveError", "ConflictError"))
    if cell["column"] == BYPASSED:
        return cell["outcome"] != IMPOSSIBLE
    return cell["outcome"] in (DIFFERS, FAILED, HANGS)


def row_named(name: str) -> Row:
    """Return a row by its name."""
    return next(row for row in ROWS if row.name == name)


DIAGONAL = {
    "DDP": "LoRA on the head",
    "FSDP1": "DoRA on the head",
    "FSDP2, root": BYPASSED,
    "FSDP2, head apart": "modules_to_save",
    "FSDP2, norm and head": "accumulation 3, uneven tokens",
    "FSDP2, CPU offload": "QLoRA",
    "FSDP2, bfloat16, float32 reduction": "checkpointing, not reentrant",
    "FSDP2 of transformers (DistributedConfig)": "LoRA",
    "DeepSpeed, stage 0": "accumulation 3, uneven tokens",
    "ZeRO-1": STOPPED,
    "ZeRO-2": "MoE router loss",
    "ZeRO-3": "evaluation, partial last batch",
    "ZeRO-3, offload": "checkpointing, reentrant",
    "context parallel, torch": "full, untied",
    "Ulysses, DeepSpeed": "full, untied",
    "tensor parallel, torch plan": "odd vocabulary",
    "tensor parallel, transformers plan": "full, untied",
    "tensor parallel, AutoTP": "full, tied",
    "expert parallel, transformers": "MoE router loss",
    "HSDP, 2 x 2": "full, tied",
    "HSDP of transformers, 2 x 2": "accumulation 3, uneven tokens",
    "TP x DP, torch, 2 x 2": "all-masked micro-batch",
    "TP x DP of transformers, 2 x 2": "evaluation, partial last batch",
    "DDP, 4 processes": "evaluation, partial last batch",
    "two nodes of two, DDP": LEFT_OUT,
    "two nodes of two, FSDP2": "LoRA on the head",
}
"""A cell of each row, so that each column has one at least."""


def diagonal(worlds: tuple[int, ...] = (2, 4)) -> list[tuple[Row, str]]:
    """Return cells that have each row once, and each column at least once.

    Args:
        worlds: numbers of processes.
    """
    return [(row, DIAGONAL[row.name]) for row in ROWS if row.world in worlds]
