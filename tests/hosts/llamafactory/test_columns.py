"""Columns of the data through LLaMA-Factory's converters, templates, cutting and packing."""

from __future__ import annotations

import json

import pytest
import torch
from support import tiny

pytest.importorskip("llamafactory")

from support import columns, factory, oracle, training

from dft_plugin.cli.checking import check
from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def named(monkeypatch):
    columns.register(monkeypatch)


def write(home, tmp_path, rows, name="weighed", **info):
    """A data set of its own folder, beside the models of `home`."""
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(rows))
    known = folder / "dataset_info.json"
    listed = json.loads(known.read_text()) if known.is_file() else {}
    known.write_text(json.dumps({**listed, name: {"file_name": f"{name}.json", **info}}))
    return {"dataset": name, "dataset_dir": str(folder)}


SHAREGPT = {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
NAMES = {"user": "human", "assistant": "gpt"}


def chats(count=24):
    """Conversations with a number for each message, and the words of each answer."""
    given, answers = [], []
    for row in columns.chats(count)[0]:
        turns = [{"from": NAMES[m["role"]], "value": m["content"]} for m in row["messages"]]
        given.append({"conversations": turns, "ratio": row["ratio"]})
        answers += [(m["content"], r) for m, r in zip(row["messages"], row["ratio"], strict=True)]
    return given, answers


def train(home, tmp_path, data, loss="ratio", **changes):
    config = factory.arguments(home, tmp_path / "out", **{**data, "max_steps": 1, **changes})
    return factory.train(config, loss)


def by_hand(batches, model=None, weight=oracle.nll):
    """The loss of batches in float64, given their columns; of the first step, where there is no other model."""
    model = tiny.llama(**factory.WIDTH) if model is None else model
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


def targets(run):
    """The texts of the runs of targets in the batches of a first step, each with the numbers of its tokens."""
    tokenizer, found = training.tokenizer(), []
    for batch in run.batches:
        ratio = batch["dft_bits_ratio"].view(torch.float32)
        for ids, numbers in zip(batch["labels"], ratio, strict=True):
            texts, current = [], []
            for token, number in zip(ids.tolist(), numbers.tolist(), strict=True):
                if token == -100 and current:
                    texts, current = [*texts, current], []
                elif token != -100:
                    current.append((token, number))
            for part in [*texts, current] if current else texts:
                found.append((tokenizer.decode([t for t, _ in part if t > 2]), [n for _, n in part]))
    return found


def require_answers(run, answers, whole=True):
    """Each run of targets is one of the answers, and all of its tokens have that one's number."""
    known, found = dict(answers), targets(run)
    assert found
    for text, numbers in found:
        fitting = [n for a, n in known.items() if a == text or (not whole and a.startswith(text))]
        assert len(set(numbers)) == 1
        assert numbers[0] in fitting, text


@pytest.mark.parametrize("kind", ["plain", "packing", "neat_packing", "mask_history", "efficient_eos"])
def test_a_number_for_each_message(kind, home, tmp_path):
    changes = {
        "plain": {},
        "packing": {"packing": True},
        "neat_packing": {"neat_packing": True},
        "mask_history": {"mask_history": True},
        "efficient_eos": {"template": "fewshot"},
    }[kind]
    if factory.OLD and "neat_packing" in changes:
        pytest.skip("refused beside these transformers")
    given, answers = chats()
    run = train(home, tmp_path, write(home, tmp_path, given, **SHAREGPT), **changes)
    require_answers(run, answers)
    assert run.losses[0] == pytest.approx(by_hand(run.batches), rel=1e-6, abs=factory.ROUNDED)
    assert run.moved > 1e-5


def test_a_key_of_each_message(home, tmp_path):
    given, answers = chats()
    keyed = [
        {"conversations": [{**m, "ratio": r} for m, r in zip(row["conversations"], row["ratio"], strict=True)]}
        for row in given
    ]
    run = train(home, tmp_path, write(home, tmp_path, keyed, **SHAREGPT))
    require_answers(run, answers)


def test_what_is_cut_keeps_its_numbers(home, tmp_path):
    given, answers = chats()
    run = train(home, tmp_path, write(home, tmp_path, given, **SHAREGPT), cutoff_len=16)
    assert max(batch["labels"].shape[1] for batch in run.batches) == 16
    require_answers(run, answers, whole=False)


def alpaca(count=24):
    rows = [{**row, "ratio": 0.5 + number} for number, row in enumerate(factory.plain_rows(count))]
    return rows, [(row["output"], row["ratio"]) for row in rows]


@pytest.mark.parametrize("packing", [False, True])
def test_a_number_for_each_row(packing, home, tmp_path):
    rows, answers = alpaca()
    run = train(home, tmp_path, write(home, tmp_path, rows), packing=packing)
    require_answers(run, answers)
    assert run.losses[0] == pytest.approx(by_hand(run.batches), rel=1e-6, abs=factory.ROUNDED)


def test_four_micro_batches_of_one_equal_one_batch_of_four(home, tmp_path):
    data = write(home, tmp_path, chats()[0], **SHAREGPT)
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    runs = [train(home, tmp_path, data, learning_rate=0.01, max_steps=2, **changes) for changes in ({}, small)]
    assert tiny.max_gap(runs[0].after, runs[1].after) < 1e-6
    assert min(run.moved for run in runs) > 1e-5


def test_factors_of_the_data_multiply_the_weights_of_dft(home, tmp_path):
    data = write(home, tmp_path, chats()[0], **SHAREGPT)
    run = train(home, tmp_path, data, {"name": "dft", "weights": {"column": "ratio"}})
    expected = by_hand(run.batches, weight=oracle.dft)
    assert run.losses[0] == pytest.approx(expected, rel=1e-6, abs=factory.ROUNDED)
    used = [n for _, numbers in targets(run) for n in numbers]
    assert run.logs[0]["dft/data_weight"] == pytest.approx(sum(used) / len(used), rel=1e-6)


def test_half_precision_does_not_round_the_numbers(home, tmp_path):
    rows = [{**row, "ratio": 1.0 + 2**-12} for row in factory.plain_rows()]
    run = train(home, tmp_path, write(home, tmp_path, rows), bf16=True)
    batch = run.batches[0]
    assert set(batch["dft_bits_ratio"].view(torch.float32)[batch["labels"] != -100].tolist()) == {1.0 + 2**-12}


def test_evaluation_is_weighed_too(home, tmp_path):
    rows, _ = alpaca()
    data = write(home, tmp_path, rows)
    write(home, tmp_path, alpaca(8)[0], name="held-out")
    run = train(home, tmp_path, data, eval_dataset="held-out", eval_strategy="steps", eval_steps=1)
    logged = [entry["eval_dft/loss"] for entry in run.trainer.state.log_history if "eval_dft/loss" in entry][-1]
    batches = list(run.trainer.get_eval_dataloader())
    assert logged == pytest.approx(by_hand(batches, run.trainer.model.eval()), rel=1e-5)
    write(home, tmp_path, factory.plain_rows(8), name="held-out")
    with pytest.raises(
        ConflictError, match=r"row 0 of the dataset `held-out.json`.*There are: instruction, input, output"
    ):
        train(home, tmp_path, data, eval_dataset="held-out", eval_strategy="steps", eval_steps=1)


def test_prepared_data_without_the_column_is_refused(home, tmp_path):
    data = write(home, tmp_path, alpaca()[0])
    stored = {"tokenized_path": str(tmp_path / "tokens")}
    train(home, tmp_path, data, "nll", **stored)
    with pytest.raises(ConflictError, match=r"`ratio`, which is not in the training set.*`tokenized_path`"):
        train(home, tmp_path, data, **stored)


def test_prepared_data_with_the_column_is_used(home, tmp_path):
    rows, answers = alpaca()
    data = write(home, tmp_path, rows)
    stored = {"tokenized_path": str(tmp_path / "tokens")}
    train(home, tmp_path, data, **stored)
    run = train(home, tmp_path, data, **stored)
    require_answers(run, answers)


def test_the_cache_of_datasets_knows_the_columns(home, tmp_path):
    rows, answers = alpaca()
    data = write(home, tmp_path, [{**row, "other": 1.0} for row in rows])
    for loss in ("nll", "two", "ratio"):
        run = train(home, tmp_path, data, loss, overwrite_cache=False)
        assert ("dft_bits_other" in run.batches[0]) == (loss == "two")
    require_answers(run, answers)


BAD = {
    "missing": (lambda row: row.pop("ratio"), "row 0 of the dataset .*There are: instruction, input, output"),
    "a string": (lambda row: row.update(ratio="much"), "row 0 .*`ratio` holds 'much'"),
    "a short list": (
        lambda row: row.update(ratio=[1.0]),
        "row 0 .* holds 1 numbers, and 2 messages were made",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_is_named_with_its_row(kind, home, tmp_path):
    change, said = BAD[kind]
    rows, _ = alpaca()
    for row in rows:
        change(row)
    with pytest.raises(ConflictError, match=said):
        train(home, tmp_path, write(home, tmp_path, rows))


def test_an_answer_without_a_number_is_named_with_its_row(home, tmp_path):
    given, _ = chats()
    given[3]["ratio"][1] = None
    with pytest.raises(ConflictError, match=r"row 3 of the dataset .*has no number"):
        train(home, tmp_path, write(home, tmp_path, given, **SHAREGPT))


@pytest.mark.parametrize("environment", ["1", "0"])
def test_where_columns_are_lost_the_check_says_so(environment, home, tmp_path, monkeypatch):
    monkeypatch.setenv("USE_V1", environment)
    config = {"dataset": "x", "predict_with_generate": True, "loss": {"name": "dft", "weights": {"column": "ratio"}}}
    path = factory.write_config(tmp_path / "sft.yaml", **factory.arguments(home, tmp_path / "out", **config))
    said = [str(one) for one in check(path).conflicts if "`ratio`" in str(one)]
    key = "USE_V1" if environment == "1" else "predict_with_generate"
    assert len(said) == 1
    assert said[0].startswith(f"`{key}`: `loss:` reads `ratio` from the data")
    path = factory.write_config(path, **factory.arguments(home, tmp_path / "out", **{**config, "loss": "dft"}))
    assert not [one for one in check(path).conflicts if "from the data" in str(one)]
