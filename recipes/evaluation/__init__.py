"""The paper's evaluation, as tasks of lm-evaluation-harness; see README.md in this folder."""

from __future__ import annotations

import json
from pathlib import Path

from recipes.recipe import RecipeError

TASKS = ("dft_math500", "dft_minerva_math", "dft_olympiadbench", "dft_aime24", "dft_amc23")
"""In the order of the paper's tables."""

GROUP = "dft_math"
"""The five at once; its value is the mean that is made here."""

METRIC = "acc,all"
"""The mean over questions of the share of right samples; `all` is the filter that keeps every sample."""


def scores(folder: Path) -> dict[str, float]:
    """Return per cents by task, and their mean where all five are there, from what lm-evaluation-harness has written.

    Raises:
        RecipeError: there is none, or more than one model.
    """
    files = sorted(folder.rglob("results_*.json"))
    if not files:
        raise RecipeError(f"no results_*.json in {folder}; write it with lm_eval's --output_path")
    if len({file.parent for file in files}) > 1:
        raise RecipeError(f"results of several models in {folder}: name the folder of one of them")
    found: dict[str, float] = {}
    # Their names end with the time, so that the newest comes last.
    for file in files:
        results = json.loads(file.read_text(encoding="utf-8"))["results"]
        found |= {task: 100 * values[METRIC] for task, values in results.items() if METRIC in values}
    found.pop(GROUP, None)
    ordered = {task: found[task] for task in (*TASKS, *sorted(found.keys() - set(TASKS))) if task in found}
    if set(TASKS) <= ordered.keys():
        ordered["mean of the five"] = sum(ordered[task] for task in TASKS) / len(TASKS)
    return ordered
