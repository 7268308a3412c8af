"""Columns of the data through Axolotl's prompt strategies, caches, cutting and packing."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from support import tiny

pytest.importorskip("axolotl")

from support import axolotl_runs, columns, oracle

from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

PACKED = axolotl_runs.PACKED


@pytest.fixture(autouse=True)
def named(monkeypatch):
    columns.register(monkeypatch)


def data(home, rows, kind, name="weighed", **changes):
    """A file of rows, and the keys of a config that train on it; prepared data in a folder of the test."""
    (home / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {
        "datasets": [{"path": f"{name}.jsonl", "ds_type": "json", "type": kind, **changes}],
        "dataset_prepared_path": "own",
        "loss": "ratio",
        "max_steps": 1,
    }


def read(home, name):
    return [json.loads(line) for line in (home / "data" / f"{name}.jsonl").read_text().splitlines()]


CHAT = {"kind": "chat_template", "roles_to_train": ["assistant"], "train_on_eos": "turn"}


def chats(home):
    """Two turns from two rows, a number for each message; and by the words of an answer its number."""
    pairs = read(home, "chat")
    rows, answers = [], {}
    for at in range(0, len(pairs), 2):
        messages = pairs[at]["messages"] + pairs[at + 1]["messages"]
        ratio = [0.25 + at + number / 8 for number in range(4)]
        rows.append({"messages": messages, "ratio": ratio})
        answers |= {messages[1]["content"]: ratio[1], messages[3]["content"]: ratio[3]}
    return rows, answers


def alpaca(home):
    rows = [{**row, "ratio": 0.5 + number} for number, row in enumerate(read(home, "alpaca"))]
    return rows, {row["output"]: row["ratio"] for row in rows}


def train(home, config, weight=oracle.nll, **changes):
    """Train one step, and keep its batches; returns the run, which knows the loss by hand."""
    cfg, trainer = axolotl_runs.prepare(axolotl_runs.write_config(home, **{**config, **changes}))
    run, batches, step = axolotl_runs.Run(trainer), [], trainer.training_step
    before = run.weights

    def training_step(model, inputs, *args, **kwargs):
        if trainer.state.global_step == 0:
            batches.append(dict(inputs))
            run.expected = [by_hand(model, batches, weight)]
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    from axolotl.train import execute_training

    execute_training(cfg, trainer, None)
    run.batches = batches
    assert tiny.max_gap(before, run.weights) > 1e-5
    return run


def by_hand(model, batches, weight=oracle.nll):
    """The float64 loss of batches, given their columns."""
    total = count = 0.0
    for batch in batches:
        inputs = {k: v for k, v in batch.items() if k != "labels" and not k.startswith("dft_")}
        with torch.no_grad():
            logits = model(**inputs).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        ratio = batch["dft_bits_ratio"].view(torch.float32)[:, 1:][labels != -100].double()
        total += float((ratio * oracle.token_losses(logits, labels, weight)).sum())
        count += ratio.numel()
    return total / count


def require_answers(run, answers, whole=True):
    """Each run of targets is an answer, and all of its tokens have that one's number."""
    tokenizer, seen = run.trainer.processing_class, 0
    for batch in run.batches:
        ratio = batch["dft_bits_ratio"].view(torch.float32)
        for labels, numbers in zip(batch["labels"].tolist(), ratio.tolist(), strict=True):
            parts, current = [], []
            for token, number in zip([*labels, -100], [*numbers, 0], strict=True):
                if token == -100 and current:
                    parts, current = [*parts, current], []
                elif token != -100:
                    current.append((token, number))
            for part in parts:
                text = tokenizer.decode([token for token, _ in part], skip_special_tokens=True).strip()
                fitting = {
                    n for answer, n in answers.items() if answer == text or (not whole and answer.startswith(text))
                }
                assert len({number for _, number in part}) == 1
                assert part[0][1] in fitting, text
                seen += 1
    assert seen


def require_loss(run):
    assert run.logs[0]["loss"] == pytest.approx(run.expected[0], rel=1e-5)


@pytest.mark.parametrize("packed", [{}, PACKED, {**PACKED, "micro_batch_size": 2}], ids=["rows", "packed", "packed 2"])
def test_a_number_for_each_message(packed, home):
    rows, answers = chats(home)
    run = train(home, data(home, rows, **CHAT), **packed)
    require_answers(run, answers)
    require_loss(run)


def test_a_key_of_each_message(home):
    rows, answers = chats(home)
    for row in rows:
        row["messages"] = [{**m, "ratio": r} for m, r in zip(row["messages"], row.pop("ratio"), strict=True)]
    require_answers(train(home, data(home, rows, **CHAT)), answers)


@pytest.mark.parametrize("packed", [{}, PACKED], ids=["rows", "packed"])
def test_a_number_for_each_row(packed, home):
    rows, answers = alpaca(home)
    run = train(home, data(home, rows, "alpaca"), **packed)
    require_answers(run, answers)
    require_loss(run)


def test_text_that_is_split_keeps_the_number_of_its_row(home):
    rows = [{**row, "ratio": 0.5 + number} for number, row in enumerate(read(home, "text"))]
    run = train(home, data(home, rows, "completion", field="text"), sequence_len=16)
    known = {row["ratio"]: row["text"] for row in rows}
    for batch in run.batches:
        ratio = batch["dft_bits_ratio"].view(torch.float32)
        for labels, numbers in zip(batch["labels"], ratio, strict=True):
            (number,) = set(numbers[labels != -100].tolist())
            text = run.trainer.processing_class.decode(labels[labels != -100], skip_special_tokens=True)
            assert text.strip() in known[number]
    require_loss(run)


@pytest.mark.parametrize("packed", [{}, PACKED], ids=["rows", "packed"])
def test_a_number_for_each_token(packed, home):
    rows = [{**row, "attention_mask": [1] * len(row["labels"])} for row in columns.token_rows()]
    run = train(home, data(home, rows, None), **packed)
    known = {number: token for row in rows for number, token in zip(row["ratio"], row["labels"], strict=True)}
    for batch in run.batches:
        kept = batch["labels"] != -100
        ratio = batch["dft_bits_ratio"].view(torch.float32)[kept].tolist()
        assert [known[number] for number in ratio] == batch["labels"][kept].tolist()
    require_loss(run)


def test_what_is_truncated_keeps_its_numbers(home):
    rows, answers = chats(home)
    run = train(home, data(home, rows, **CHAT), sequence_len=24, excess_length_strategy="truncate")
    assert max(batch["labels"].shape[1] for batch in run.batches) == 24
    require_answers(run, answers, whole=False)
    require_loss(run)


def test_four_micro_batches_of_one_equal_one_batch_of_four(home):
    config = data(home, chats(home)[0], **CHAT) | {"max_steps": 2, "learning_rate": 0.01}
    whole = train(home, config)
    split = train(home, config, micro_batch_size=1, gradient_accumulation_steps=4)
    assert tiny.max_gap(whole.weights, split.weights) < 1e-6


def test_factors_of_the_data_multiply_the_weights_of_dft(home):
    loss = {"name": "dft", "weights": {"column": "ratio"}}
    run = train(home, data(home, chats(home)[0], **CHAT), oracle.dft, loss=loss)
    require_loss(run)
    used = [batch["dft_bits_ratio"].view(torch.float32)[batch["labels"] != -100] for batch in run.batches]
    assert run.logs[0]["dft/data_weight"] == pytest.approx(torch.cat(used).mean().item(), rel=1e-5)


def test_evaluation_is_weighed_too(home):
    config = data(home, alpaca(home)[0], "alpaca")
    run = train(home, config, val_set_size=8, eval_strategy="steps", eval_steps=1, eval_batch_size=8)
    batches = list(run.trainer.get_eval_dataloader())
    expected = by_hand(run.trainer.model.eval(), batches)
    assert run.evaluations[-1]["eval_dft/loss"] == pytest.approx(expected, rel=1e-5)


def test_prepared_data_knows_its_columns(home):
    rows, answers = alpaca(home)
    config = data(home, [{**row, "other": 1.0} for row in rows], "alpaca")
    kept = {}
    for loss in ("nll", "ratio", "two", "ratio"):
        run = train(home, config, loss=loss) if loss != "nll" else None
        if run is None:
            axolotl_runs.prepare(axolotl_runs.write_config(home, **{**config, "loss": "nll"}))
        else:
            assert ("dft_bits_other" in run.batches[0]) == (loss == "two")
            require_answers(run, answers)
        kept[loss] = {path.name for path in (home / "own").iterdir() if path.is_dir()}
    assert len(kept["nll"]) < len(kept["two"])
    assert kept["ratio"] == kept["two"]


def test_prepared_data_that_lost_its_column_is_refused(home):
    from datasets import load_from_disk

    config = data(home, alpaca(home)[0], "alpaca")
    axolotl_runs.prepare(axolotl_runs.write_config(home, **config))
    (folder,) = (path for path in (home / "own").iterdir() if path.is_dir())
    load_from_disk(str(folder)).remove_columns("dft_column_ratio").save_to_disk(str(home / "without"))
    shutil.rmtree(folder)
    (home / "without").rename(folder)
    with pytest.raises(ConflictError, match=r"`ratio`, which is not in the training set.*`dataset_prepared_path`"):
        axolotl_runs.prepare(axolotl_runs.write_config(home, **config))


BAD = {
    "missing": (
        lambda row: row.pop("ratio"),
        "`ratio`, which is not in row 0 of .*There are: instruction, input, output",
    ),
    "a string": (lambda row: row.update(ratio="much"), "row 0 of the dataset `weighed.jsonl`.*holds 'much'"),
    "a list": (lambda row: row.update(ratio=[1.0]), "row 0 of .*is a list of 1, and the row a text"),
    "None": (lambda row: row.update(ratio=None), "row 0 of .*is None"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_is_named_with_its_row(kind, home):
    change, said = BAD[kind]
    rows, _ = alpaca(home)
    for row in rows:
        change(row)
    with pytest.raises(ConflictError, match=said):
        axolotl_runs.prepare(axolotl_runs.write_config(home, **data(home, rows, "alpaca")))


def test_an_answer_without_a_number_is_named_with_its_row(home):
    rows, _ = chats(home)
    rows[3]["ratio"][1] = None
    with pytest.raises(ConflictError, match=r"row 3 of .*has no number"):
        axolotl_runs.prepare(axolotl_runs.write_config(home, **data(home, rows, **CHAT)))


@pytest.mark.parametrize(
    "changes",
    [{"streaming": True}, {"processor_type": "AutoProcessor"}, {"skip_prepare_dataset": True}],
    ids=["streaming", "processor", "unprepared"],
)
def test_where_columns_are_lost_the_config_is_refused(changes, home):
    config = {**data(home, alpaca(home)[0], "alpaca"), "loss": {"name": "dft", "weights": {"column": "ratio"}}}
    with pytest.raises(ValueError, match=r"`loss:` reads `ratio` from the data, and rows|reads `ratio` .*a processor"):
        axolotl_runs.prepare(axolotl_runs.write_config(home, **config, **changes))
