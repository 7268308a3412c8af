"""The page of what was tried around the training step, made from the names of the tests, which are claims."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

HEAD = """\
# Around the training step

Made by `python docs/generate.py` from the names of the tests: each line is a claim that a test holds up, on real
trainers and with values worked out by hand in float64. What a host does in its own runs stands on the hosts' pages.
"""

SECTIONS = {
    "Evaluation, prediction and the statistics in the log": (
        "hosts/transformers/test_passes.py",
        "hosts/transformers/test_evaluation_odd.py",
        "hosts/transformers/test_logs.py",
        "hosts/axolotl/test_passes.py",
        "hosts/llamafactory/test_passes.py",
    ),
    "Several ranks": ("hosts/test_ranks.py",),
    "The number of targets of a step": ("hosts/transformers/test_counts.py",),
    "Never silently off": ("hosts/transformers/test_guard.py",),
    "A loss that is no finite number": (
        "attachment/test_nonfinite.py",
        "hosts/transformers/test_nonfinite.py",
        "hosts/transformers/test_nonfinite_besides.py",
        "hosts/test_ranks_nonfinite.py",
    ),
    "Every loss by its name, and each kind in each host": (
        "hosts/trl/test_family.py",
        "hosts/axolotl/test_kinds.py",
        "hosts/llamafactory/test_kinds.py",
        "hosts/llamafactory/test_v1_kinds.py",
    ),
    "Losses that hosts ship as well": ("hosts/axolotl/test_family.py", "hosts/llamafactory/test_family.py"),
    "Losses that change during a run": (
        "hosts/transformers/test_schedules.py",
        "hosts/llamafactory/test_v1_schedules.py",
    ),
    "Losses that look at a whole sequence or step, or divide by weights": (
        "hosts/transformers/test_scopes.py",
        "hosts/transformers/test_divisor.py",
        "hosts/transformers/test_divisor_sharded.py",
        "hosts/trl/test_whole_steps.py",
        "hosts/axolotl/test_whole_steps.py",
        "hosts/llamafactory/test_whole_steps.py",
    ),
    "A frozen reference": (
        "attachment/test_reference.py",
        "attachment/test_which_reference.py",
        "attachment/test_reference_sharded.py",
        "hosts/transformers/test_reference.py",
        "hosts/trl/test_reference.py",
        "test_without_reference.py",
    ),
    "Weights from the data": (
        "columns_/test_columns.py",
        "attachment/test_facts.py",
        "hosts/transformers/test_columns.py",
        "hosts/trl/test_columns.py",
        "hosts/axolotl/test_columns.py",
        "hosts/llamafactory/test_columns.py",
    ),
    "Tokens that are always learned, and factors by token": (
        "objectives_/test_adjusted.py",
        "attachment/test_tokens.py",
        "attachment/test_learning_to_stop.py",
        "hosts/transformers/test_tokens.py",
        "hosts/trl/test_tokens.py",
        "hosts/axolotl/test_tokens.py",
        "hosts/llamafactory/test_tokens.py",
    ),
    "Which checkpoint is best": ("hosts/transformers/test_best.py", "test_best.py"),
    "Undoing, and doing it again": ("hosts/transformers/test_undo.py", "attachment/test_instance.py"),
    "The first batch": ("attachment/test_first_batch.py",),
    "Errors of the model": ("attachment/test_errors_of_the_model.py",),
    "Hooks on the head": ("attachment/test_head_hooks.py",),
    "Odd forwards, heads and losses": ("attachment/test_odd_forwards.py",),
    "Sharded heads": (
        "attachment/test_sharded.py",
        "attachment/test_sharded_called.py",
        "attachment/test_deepspeed.py",
    ),
    "Classes with a loss of their own": ("attachment/test_own_loss.py",),
}
"""Heading: files below tests/."""


def page() -> str:
    """Write the page."""
    parts = [HEAD]
    for heading, files in SECTIONS.items():
        lines = [line for name in files for line in _lines(ROOT / "tests" / name)]
        parts.append(f"## {heading}\n\n| what holds | shown by |\n| --- | --- |\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _lines(path: Path) -> Iterator[str]:
    if not path.exists():
        return
    link = path.relative_to(ROOT).as_posix()
    for test in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
            claim = test.name.removeprefix("test_").replace("_", " ")
            yield f"| {claim[0].upper()}{claim[1:]} | [{path.stem}](../{link}) |"
