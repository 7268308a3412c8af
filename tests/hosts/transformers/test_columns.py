"""Columns of the data through the plain Trainer: pre-tokenised rows, and whatever collates them."""

from __future__ import annotations

import pickle

import pytest
import torch
from datasets import Dataset
from support import columns, tiny, training
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
)

from dft_plugin import activate
from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host


def trainer(tmp_path, rows, collator=training.collate, evaluated=None, **changes):
    torch.manual_seed(0)
    return Trainer(
        model=tiny.llama(),
        args=TrainingArguments(**training.arguments(tmp_path, **{"max_steps": 1, **changes})),
        data_collator=collator,
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        eval_dataset=evaluated,
    )


def collators():
    tokenizer = training.tokenizer()
    left = training.tokenizer()
    left.padding_side = "left"
    return {
        "hand": training.collate,
        "seq2seq": DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
        "left": DataCollatorForSeq2Seq(left),
        "flattening": DataCollatorWithFlattening(),
        "no labels": DataCollatorForLanguageModeling(tokenizer, mlm=False),
    }


def first_rows(made, rows, count=4):
    """The rows of the first step: this seed's order, as the trainer's own loader without columns gives it."""
    batch = next(iter(made.get_train_dataloader()))
    seen = batch["input_ids"]
    if "position_ids" in batch:
        begins = (batch["position_ids"][0] == 0).nonzero()[1:, 0].tolist()
        seen = seen[0].tensor_split(begins)
    whole = [[i for i in ids.tolist() if i] for ids in seen]
    assert len(whole) == count
    return [next(row for row in rows if row["input_ids"] == ids) for ids in whole]


@pytest.mark.parametrize("collator", ["hand", "seq2seq", "left", "flattening", "no labels"])
@pytest.mark.parametrize("per", ["token", "row"])
def test_step_1_equals_the_float64_loss(collator, per, tmp_path):
    rows = columns.token_rows()
    if collator == "no labels":
        rows = [{**row, "labels": row["input_ids"]} for row in rows]
    if per == "row":
        rows = [{**row, "ratio": float(number)} for number, row in enumerate(rows)]
    given = [{key: row[key] for key in row if key != "labels" or collator != "no labels"} for row in rows]
    plain = trainer(tmp_path, given, collators()[collator])
    used = first_rows(plain, rows)
    if per == "row":
        used = [{**row, "ratio": [row["ratio"]] * len(row["input_ids"])} for row in used]
    expected = columns.loss(tiny.llama(), used)
    made = trainer(tmp_path, given, collators()[collator])
    activate(made, columns.Ratio())
    made.train()
    assert training.losses(made)[0] == pytest.approx(expected, rel=1e-6)


def test_four_micro_batches_of_one_equal_one_batch_of_four(tmp_path):
    ended = []
    for changes in ({}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}):
        made = trainer(tmp_path, columns.token_rows(), max_steps=2, learning_rate=0.01, **changes)
        activate(made, columns.Ratio())
        made.train()
        ended.append(training.trained(made.model))
    assert tiny.max_gap(*ended) < 1e-6


def test_two_columns_arrive_each_in_its_place(tmp_path):
    rows = [{**row, "other": [1.0 + i for i in range(len(row["input_ids"]))]} for row in columns.token_rows(4)]
    both = [{**row, "ratio": [a + 100 * b for a, b in zip(row["ratio"], row["other"], strict=True)]} for row in rows]
    made = trainer(tmp_path, rows)
    activate(made, columns.Two())
    made.train()
    assert training.losses(made)[0] == pytest.approx(columns.loss(tiny.llama(), both), rel=1e-6)


def test_evaluation_is_weighed_too(tmp_path):
    rows = columns.token_rows(7)
    made = trainer(tmp_path, columns.token_rows(), evaluated=Dataset.from_list(rows), per_device_eval_batch_size=7)
    activate(made, columns.Ratio())
    assert made.evaluate()["eval_loss"] == pytest.approx(columns.loss(tiny.llama(), rows), rel=1e-6)


def test_an_evaluation_set_without_the_column_is_refused(tmp_path):
    made = trainer(tmp_path, columns.token_rows(), evaluated=Dataset.from_list(training.rows(4)))
    with pytest.raises(
        ConflictError, match=r"`ratio`, which is not in the evaluation set .*There are: input_ids, labels"
    ):
        activate(made, columns.Ratio())


def test_detaching_puts_the_trainer_back(tmp_path):
    made = trainer(tmp_path, columns.token_rows())
    collator = made.data_collator
    attachment = activate(made, columns.Ratio())
    assert made.data_collator is not collator
    attachment.detach()
    assert made.data_collator is collator
    assert "ratio" not in made._signature_columns


def test_a_torch_dataset_is_carried_as_well(tmp_path):
    rows = columns.token_rows(4)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, at):
            return rows[at]

    made = trainer(tmp_path, Rows())
    activate(made, columns.Ratio())
    made.train()
    assert training.losses(made)[0] == pytest.approx(columns.loss(tiny.llama(), rows), rel=1e-6)


def test_workers_that_load_batches_carry_columns(tmp_path):
    rows = columns.token_rows(4)
    made = trainer(tmp_path, rows, dataloader_num_workers=1)
    activate(made, columns.Ratio())
    made.train()
    assert training.losses(made)[0] == pytest.approx(columns.loss(tiny.llama(), rows), rel=1e-6)
    again = pickle.loads(pickle.dumps(made.data_collator))
    assert torch.equal(again(rows)["dft_bits_ratio"], made.data_collator(rows)["dft_bits_ratio"])


def test_rows_that_are_tensors_are_carried(tmp_path):
    rows = columns.token_rows(4)
    data = Dataset.from_list(rows).with_format("torch")

    def flat(features):
        (feature,) = features
        return {key: value[None] for key, value in feature.items()}

    made = trainer(tmp_path, data, flat, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    activate(made, columns.Ratio())
    made.train()
    assert training.losses(made)[0] == pytest.approx(columns.loss(tiny.llama(), rows), rel=1e-6)


def test_rows_that_hold_no_tokens_are_refused(tmp_path):
    with pytest.raises(ConflictError, match=r"the rows of the training set hold no tokens .text, ratio."):
        activate(trainer(tmp_path, [{"text": "a", "ratio": 1.0}]), columns.Ratio())


def test_a_batch_that_says_its_labels_twice_is_refused(tmp_path):
    def twice(features):
        batch = training.collate(features)
        return {**batch, "shift_labels": batch["labels"]}

    made = trainer(tmp_path, columns.token_rows(), twice)
    activate(made, columns.Ratio())
    with pytest.raises(ConflictError, match=r"`shift_labels` beside them"):
        made.train()


BAD = {
    "a string": ("0.5", "row 1 of the training set: the column `ratio` holds '0.5'"),
    "None": (None, "row 1 of the training set: the column `ratio` is None"),
    "NaN": (float("nan"), "row 1 .* has no number .None or NaN. for token"),
    "a short list": ([1.0, 2.0], r"row 1 .* holds 2 numbers for \d+ tokens"),
    "infinity": (float("inf"), "row 1 .* has inf for token"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_is_named_with_its_row_before_training(kind, tmp_path):
    value, said = BAD[kind]
    rows = columns.token_rows(4)
    listed = isinstance(value, list)
    rows = [{**row, "ratio": row["ratio"] if listed else 1.0} for row in rows]
    if isinstance(value, str):
        rows = [{**row, "ratio": "1"} for row in rows]
        said = said.replace("row 1", "row 0").replace("0.5", "1")
    else:
        rows[1]["ratio"] = value
    made = trainer(tmp_path, rows)
    with pytest.raises(ConflictError, match=said):
        activate(made, columns.Ratio())


def test_a_negative_factor_is_refused(tmp_path):
    rows = [{**row, "ratio": -1.0} for row in columns.token_rows(4)]
    with pytest.raises(ConflictError, match=r"row 0 .*has -1 for token .*0 or more"):
        activate(trainer(tmp_path, rows), {"name": "dft", "weights": {"column": "ratio"}})


def test_a_missing_column_names_those_that_are_there(tmp_path):
    with pytest.raises(
        ConflictError, match=r"`ratio`, which is not in the training set. There are: input_ids, labels"
    ):
        activate(trainer(tmp_path, training.rows()), columns.Ratio())


def test_a_collator_with_labels_of_its_own_is_refused(tmp_path):
    def own(features):
        batch = training.collate([{**f, "labels": f["input_ids"]} for f in features])
        return {**batch, "labels": batch["input_ids"].clone()}

    made = trainer(tmp_path, columns.token_rows(), own)
    activate(made, columns.Ratio())
    with pytest.raises(ConflictError, match=r"no number for a token that is trained"):
        made.train()


def test_a_column_that_was_cast_on_its_way_is_refused(tmp_path):
    made = trainer(tmp_path, columns.token_rows())
    activate(made, columns.Ratio())
    inner = made.data_collator

    def cast(features):
        batch = inner(features)
        batch["dft_column_ratio"] = batch.pop("dft_bits_ratio").view(torch.float32).bfloat16()
        return batch

    made.data_collator = cast
    with pytest.raises(ConflictError, match=r"`ratio` has come as torch.bfloat16"):
        made.train()
