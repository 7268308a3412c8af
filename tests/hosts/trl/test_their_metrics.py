"""TRL's own `mean_token_accuracy` and `entropy` beside our `dft/top1` and `dft/entropy`, as docs/losses.md says."""

from __future__ import annotations

import pytest
from support import training

from dft_plugin import activate

pytestmark = pytest.mark.host

LOSS = {"name": "dft", "log": ["top1", "entropy"]}
PAIRS = {"mean_token_accuracy": "dft/top1", "entropy": "dft/entropy"}

KINDS = {
    "full": {},
    "packed": {"packing": True, "max_length": 32},
    "logits": {},
    "lora": {"peft_config": training.lora_config()},
}


def logged(tmp_path, loss=LOSS, **changes):
    made = training.sft_trainer(tmp_path, **changes)
    activate(made, loss)
    made.train()
    return training.train_logs(made)


def gaps(entry, prefix=""):
    return [abs(entry[prefix + theirs] - entry[prefix + ours]) for theirs, ours in PAIRS.items()]


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_log_is_of_one_batch_they_are_equal(kind, tmp_path):
    loss = {**LOSS, "kernel": "logits"} if kind == "logits" else LOSS
    entries = logged(tmp_path, loss, **KINDS[kind])
    assert len(entries) > 1
    for entry in entries:
        assert gaps(entry) == pytest.approx([0, 0], abs=1e-6)
    assert any(entry["dft/top1"] > 0 for entry in entries)


@pytest.mark.parametrize(
    "several",
    [{"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}, {"logging_steps": 2, "max_steps": 4}],
    ids=["micro-batches", "steps"],
)
def test_where_it_is_of_several_trl_has_a_mean_of_their_means(several, tmp_path):
    split, whole = logged(tmp_path / "a", **several), logged(tmp_path / "b", max_steps=several.get("max_steps", 3))
    assert any(max(gaps(entry)) > 1e-4 for entry in split)
    if "logging_steps" not in several:
        # Ours are the same in any split.
        assert [entry["dft/top1"] for entry in split] == pytest.approx([entry["dft/top1"] for entry in whole])
        return
    first, second = whole[:2]
    for theirs, ours in PAIRS.items():
        tokens = first["dft/tokens"] + second["dft/tokens"]
        mean = (first[ours] * first["dft/tokens"] + second[ours] * second["dft/tokens"]) / tokens
        assert split[0][ours] == pytest.approx(mean)
        assert split[0][theirs] == pytest.approx((first[theirs] + second[theirs]) / 2)


@pytest.mark.parametrize(("size", "equal"), [(10, True), (4, False)])
def test_an_evaluation_of_one_batch_is_equal_too(size, equal, tmp_path):
    made = training.sft_trainer(tmp_path, per_device_eval_batch_size=size)
    activate(made, LOSS)
    found = made.evaluate()
    assert (max(gaps(found, "eval_")) < 1e-6) == equal
