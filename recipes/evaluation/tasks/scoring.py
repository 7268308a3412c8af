"""What the tasks call: questions out of the sources, and answers checked by math-verify."""

from __future__ import annotations

from typing import Any

ASK = "\nPlease reason step by step, and put your final answer within \\boxed{}."
"""As the paper's evaluation asks (`qwen-boxed`, `llama-base-boxed` and `deepseek-math` in its `utils.py`)."""


def questions(rows: Any) -> Any:
    """Bring the rows of any of the five sources to a problem and an answer."""
    return rows.map(_question, remove_columns=rows.column_names)


def _question(row: dict[str, Any]) -> dict[str, str]:
    return {"problem": row.get("problem") or row["question"], "gold": _gold(row)}


def _gold(row: dict[str, Any]) -> str:
    """Return the answer: a list in OlympiadBench, within the solution in Minerva Math, a float in AMC23."""
    if row.get("final_answer"):
        return str(row["final_answer"][0]).strip("$")
    answer = row.get("answer")
    if answer is None:
        return _last_boxed(row["solution"])
    return str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer)


def _last_boxed(text: str) -> str:
    """Return what stands in the last box of a solution."""
    start = text.rindex("\\boxed{") + len("\\boxed{")
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at]
    raise ValueError(f"a box that does not end: {text[-80:]!r}")


def prompt(row: dict[str, Any]) -> str:
    """Return what the model is asked."""
    return row["problem"] + ASK


def target(row: dict[str, Any]) -> str:
    """Return the right answer."""
    return row["gold"]


def score(row: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
    """Return what the samples of one question came to.

    acc: the share of samples that are right; any: whether one is; boxed: the share that says an answer in a box.
    """
    (samples,) = results
    right = [is_right(row["gold"], sample) for sample in samples]
    boxed = [("\\boxed{" in sample) for sample in samples]
    return {"acc": sum(right) / len(right), "any": float(any(right)), "boxed": sum(boxed) / len(boxed)}


def is_right(gold: str, sample: str) -> bool:
    """Whether math-verify finds the answer of a sample equal to the right one."""
    from math_verify import parse, verify

    return bool(verify(parse(f"\\boxed{{{gold}}}"), parse(sample)))
