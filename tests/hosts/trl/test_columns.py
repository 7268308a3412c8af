"""Columns of the data through SFTTrainer's own preparation: templates, masks, truncation, packing."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from support import columns, oracle, tiny, training
from trl import SFTConfig, SFTTrainer

from dft_plugin import activate
from dft_plugin.errors import ConflictError
from dft_trl import run
from dft_trl.columns import carrying

pytestmark = pytest.mark.host


RATIO = columns.Ratio()


def trainer(tmp_path, rows, objective=RATIO, template=columns.TEMPLATE, evaluated=None, **changes):
    """Made as a user would, all of the data in one step unless that is changed."""
    defaults = {
        "gradient_checkpointing": False,
        "max_length": 128,
        "bf16": False,
        "shuffle_dataset": False,
        "max_steps": 1,
        "per_device_train_batch_size": len(rows),
    }
    with carrying(objective):
        made = SFTTrainer(
            model=tiny.llama(),
            args=SFTConfig(**training.arguments(tmp_path, **{**defaults, **changes})),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=evaluated and Dataset.from_list(evaluated),
            processing_class=columns.tokenizer(template),
        )
    activate(made, objective)
    return made


def step_1(made):
    made.train()
    return training.losses(made)[0]


def all_tokens(rows):
    return [{**row, "labels": row["input_ids"]} for row in rows]


PACKINGS = {
    "none": {},
    "bfd": {"packing": True, "packing_strategy": "bfd", "max_length": 64},
    "bfd_split": {"packing": True, "packing_strategy": "bfd_split", "max_length": 64},
    "padding free": {"padding_free": True, "max_length": None},
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("only", [True, False], ids=["assistant_only", "all"])
def test_a_number_for_each_message(packing, only, tmp_path):
    given, rows = columns.chats()
    made = trainer(tmp_path, given, assistant_only_loss=only, **PACKINGS[packing])
    expected = columns.loss(tiny.llama(), rows if only else all_tokens(rows))
    assert step_1(made) == pytest.approx(expected, rel=1e-6)


def test_a_key_of_each_message(tmp_path):
    given, rows = columns.chats()
    keyed = [
        {"messages": [{**m, "ratio": r} for m, r in zip(row["messages"], row["ratio"], strict=True)]} for row in given
    ]
    made = trainer(tmp_path, keyed, assistant_only_loss=True)
    assert step_1(made) == pytest.approx(columns.loss(tiny.llama(), rows), rel=1e-6)


def test_messages_that_are_not_trained_need_no_number(tmp_path):
    given, rows = columns.chats()
    for row in given:
        row["ratio"] = [None, row["ratio"][1]] * 2
    for row in rows:
        half = len(row["ratio"])
        first = row["ratio"][row["labels"].index(2)]
        row["ratio"] = [first] * half
    made = trainer(tmp_path, given, assistant_only_loss=True)
    assert step_1(made) == pytest.approx(columns.loss(tiny.llama(), rows), rel=1e-6)
    with pytest.raises(ConflictError, match=r"row 0 of the dataset `train`.*has no number .None or NaN. for token 1,"):
        trainer(tmp_path, given)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_number_for_each_row_of_prompt_and_completion(packing, tmp_path):
    chats, rows = columns.chats(turns=1)
    given = [
        {"prompt": row["messages"][:1], "completion": row["messages"][1:], "ratio": 1.0 + number}
        for number, row in enumerate(chats)
    ]
    # TRL's completion begins after the prompt with its generation prompt, which is `w11` here: as by hand.
    rows = [{**row, "ratio": [1.0 + number] * len(row["labels"])} for number, row in enumerate(rows)]
    made = trainer(tmp_path, given, **PACKINGS[packing])
    assert step_1(made) == pytest.approx(columns.loss(tiny.llama(), rows), rel=1e-6)


def test_text_takes_a_number_for_each_row_and_no_list(tmp_path):
    tokens = columns.token_rows(8)
    given = [{"text": columns.text(row["input_ids"]), "ratio": 0.5 + at} for at, row in enumerate(tokens)]
    rows = [{"input_ids": [*row["input_ids"], 2], "labels": [*row["input_ids"], 2]} for row in tokens]
    rows = [{**row, "ratio": [0.5 + at] * len(row["labels"])} for at, row in enumerate(rows)]
    assert step_1(trainer(tmp_path, given)) == pytest.approx(columns.loss(tiny.llama(), rows), rel=1e-6)
    with pytest.raises(
        ConflictError, match=r"row 0 of the dataset `train`: the column `ratio` is a list of 2, and the row a"
    ):
        trainer(tmp_path, [{**row, "ratio": [1.0, 2.0]} for row in given])


def test_text_takes_as_many_numbers_as_it_has_tokens(tmp_path):
    given = [{"text": columns.text(row["input_ids"]), "ratio": [*row["ratio"], 7.0]} for row in columns.token_rows(8)]
    rows = [{**row, "input_ids": [*row["input_ids"], 2]} for row in columns.token_rows(8)]
    rows = [{**row, "labels": row["input_ids"], "ratio": [*row["ratio"], 7.0]} for row in rows]
    assert step_1(trainer(tmp_path, given)) == pytest.approx(columns.loss(tiny.llama(), rows), rel=1e-6)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_number_for_each_token(packing, tmp_path):
    rows = columns.token_rows()
    expected = columns.loss(tiny.llama(), rows)
    assert step_1(trainer(tmp_path, rows, **PACKINGS[packing])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_first_token_needs_no_number(packing, tmp_path):
    rows = all_tokens(columns.token_rows())
    expected = columns.loss(tiny.llama(), rows)
    rows = [{**row, "ratio": [None, *row["ratio"][1:]]} for row in rows]
    assert step_1(trainer(tmp_path, rows, **PACKINGS[packing])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("first", [False, True], ids=["numbers", "no number of first tokens"])
def test_packing_without_boundaries(first, tmp_path):
    rows = given = all_tokens(columns.token_rows())
    if first:
        # TRL lets a row before predict it; without a number it is no target.
        rows = [{**row, "labels": [-100, *row["input_ids"][1:]]} for row in rows]
    whole = {key: [entry for row in rows for entry in row[key]] for key in ("input_ids", "labels", "ratio")}
    chunks = [{key: whole[key][at : at + 32] for key in whole} for at in range(0, len(whole["labels"]), 32)]
    if first:
        given = [{**row, "ratio": [None, *row["ratio"][1:]]} for row in given]
    made = trainer(tmp_path, given, packing=True, packing_strategy="wrapped", max_length=32)
    assert step_1(made) == pytest.approx(columns.loss(tiny.llama(), chunks), rel=1e-6)


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_truncated_at_either_end(mode, tmp_path):
    rows = columns.token_rows()
    kept = slice(None, 8) if mode == "keep_start" else slice(-8, None)
    short = [{key: row[key][kept] for key in row} for row in rows]
    made = trainer(tmp_path, rows, max_length=8, truncation_mode=mode)
    assert any(len(row["labels"]) > 8 for row in rows)
    assert step_1(made) == pytest.approx(columns.loss(tiny.llama(), short), rel=1e-6)


@pytest.mark.parametrize("packing", ["none", "bfd"])
def test_four_micro_batches_of_one_equal_one_batch_of_four(packing, tmp_path):
    ended, given = [], columns.chats(24)[0]
    for size, steps in ((4, 1), (1, 4)):
        made = trainer(
            tmp_path,
            given,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=2,
            learning_rate=0.01,
            **PACKINGS[packing],
        )
        made.train()
        ended.append(training.trained(made.model))
    assert tiny.max_gap(*ended) < 1e-6


def test_factors_of_the_data_multiply_the_weights_of_dft(tmp_path):
    given, rows = columns.chats()
    loss = {"name": "dft", "weights": {"column": "ratio"}}
    made = trainer(tmp_path, given, loss, assistant_only_loss=True)
    assert step_1(made) == pytest.approx(columns.loss(tiny.llama(), rows, oracle.dft), rel=1e-6)
    used = [r for row in rows for r, label in zip(row["ratio"], row["labels"], strict=True) if label != -100]
    assert training.train_logs(made)[0]["dft/data_weight"] == pytest.approx(sum(used) / len(used), rel=1e-6)


def test_evaluation_sets_are_weighed_whenever_they_are_given(tmp_path):
    given, rows = columns.chats(6, seed=1)
    made = trainer(
        tmp_path, columns.chats()[0], evaluated=given, assistant_only_loss=True, per_device_eval_batch_size=6
    )
    expected = pytest.approx(columns.loss(tiny.llama(), rows), rel=1e-6)
    assert made.evaluate()["eval_loss"] == expected
    assert made.evaluate(Dataset.from_list(given))["eval_loss"] == expected
    assert made.evaluate(made.eval_dataset)["eval_loss"] == expected
    with pytest.raises(
        ConflictError, match=r"`ratio`, which is not in row 0 of the dataset `eval`. There are: messages"
    ):
        made.evaluate(Dataset.from_list([{"messages": row["messages"]} for row in given]))


def test_a_stream_carries_columns(tmp_path):
    given, rows = columns.chats(4)
    with carrying(columns.Ratio()):
        made = SFTTrainer(
            model=tiny.llama(),
            args=SFTConfig(
                **training.arguments(
                    tmp_path, max_steps=1, gradient_checkpointing=False, bf16=False, assistant_only_loss=True
                )
            ),
            train_dataset=Dataset.from_list(given).to_iterable_dataset(),
            processing_class=columns.tokenizer(),
        )
    activate(made, columns.Ratio())
    assert step_1(made) == pytest.approx(columns.loss(tiny.llama(), rows), rel=1e-6)


def test_a_run_from_yaml_carries_the_column(tmp_path, monkeypatch):
    given, rows = columns.chats(4)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in given))
    tiny.llama().save_pretrained(tmp_path / "model")
    columns.tokenizer().save_pretrained(tmp_path / "model")
    config = training.arguments(tmp_path / "out", max_steps=1, per_device_train_batch_size=4)
    config |= {"model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "data"), "bf16": False}
    config |= {"assistant_only_loss": True, "gradient_checkpointing": False, "dtype": "float32"}
    (tmp_path / "sft.yaml").write_text(json.dumps(config))
    seen = []
    monkeypatch.setattr(SFTTrainer, "train", lambda self, *_, **__: seen.append(self))
    monkeypatch.setattr(SFTTrainer, "save_model", lambda *_: None)
    loss = {"name": "nll", "weights": {"column": "ratio"}}
    monkeypatch.setattr("sys.argv", ["run.py"])
    run.main(["--dft-settings", json.dumps(loss), "--config", str(tmp_path / "sft.yaml")])
    batch = next(iter(seen[0].get_train_dataloader()))
    sums = batch["dft_bits_ratio"].view(torch.float32).where(batch["labels"] != -100, 0).sum(1)
    expected = [sum(r for r, label in zip(row["ratio"], row["labels"], strict=True) if label != -100) for row in rows]
    assert sorted(sums.tolist()) == pytest.approx(sorted(expected))


def test_a_trainer_made_without_us_is_refused_where_the_column_is_lost(tmp_path):
    config = training.arguments(tmp_path, gradient_checkpointing=False, bf16=False, packing=True, max_length=64)
    made = SFTTrainer(
        model=tiny.llama(),
        args=SFTConfig(**config),
        train_dataset=Dataset.from_list(columns.chats()[0]),
        processing_class=columns.tokenizer(),
    )
    with pytest.raises(
        ConflictError, match=r"`ratio`, which is not in the training set.*with dft_trl.columns.carrying"
    ):
        activate(made, columns.Ratio())


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path):
    template = columns.TEMPLATE.replace(
        "{{ m.content }} </s>{% endgen", "{% if loop.last %}w12 {% endif %}{{ m.content }} </s>{% endgen"
    )
    given, _ = columns.chats(4)
    with pytest.raises(ConflictError, match=r"row 0 of the dataset `train`.*renders the first 2 messages otherwise"):
        trainer(tmp_path, given, template=template)


def test_a_number_for_each_message_must_be_one_for_each(tmp_path):
    given, _ = columns.chats(4)
    given[2]["ratio"] = [1.0]
    with pytest.raises(ConflictError, match=r"row 2 of the dataset `train`.*holds 1 numbers for 4 messages"):
        trainer(tmp_path, given)


def test_prepared_rows_cached_without_the_column_are_not_used(tmp_path):
    Dataset.from_list(columns.chats(8)[0]).save_to_disk(tmp_path / "data")
    stored = lambda: Dataset.load_from_disk(str(tmp_path / "data"))  # noqa: E731
    made = {}
    for name in ("ratio", "other", "ratio"):
        kind = type("Kind", (columns.Ratio,), {"columns": frozenset({name}), "__module__": __name__})
        data = stored().rename_column("ratio", name) if name != "ratio" else stored()
        with carrying(kind()):
            made[name] = SFTTrainer(
                model=tiny.llama(),
                args=SFTConfig(**training.arguments(tmp_path, bf16=False, packing=True, max_length=64)),
                train_dataset=data,
                processing_class=columns.tokenizer(),
            ).train_dataset.column_names
    assert made == {name: ["input_ids", "labels", f"dft_column_{name}", "seq_lengths"] for name in made}
