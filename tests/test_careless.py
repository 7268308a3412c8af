"""What a careless user types is refused by one error: what was given, what is allowed, what to do next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dft_plugin import DftError, activate, attach, linear_token_loss, token_loss
from dft_plugin.cli.app import app
from dft_plugin.config.plugins import build_catalogue, build_manager
from dft_plugin.config.reading import load

CATALOGUE = build_catalogue(build_manager(third_party=False))

TRL = "model_name_or_path: m\ndataset_name: d\n"
ALL = "dft, nll, eaft, prift"
OF_DFT = "alpha, floor, name, kernel"

SETTINGS = [
    # What stands after `loss:`; what was given, what is allowed, what to do next.
    ("DFT", "`DFT` is not a known name", ALL, "Did you mean `dft`?"),
    ("dtf", "`dtf` is not a known name", ALL, "Did you mean `dft`?"),
    ("iw-sft", "`iw-sft` is not a known name", ALL, "Did you mean `iw_sft`?"),
    ("sft", "`sft` is not a known name", ALL, "Did you mean `nll`?"),
    ("cross_entropy", "`cross_entropy` is not a known name", ALL, "Did you mean `nll`?"),
    ("dft(alpha=0.7)", "`dft(alpha=0.7)` is not", ALL, "Did you mean `dft`?"),
    ("dft alpha=0.7", "`dft alpha=0.7` is not", ALL, "Did you mean `dft`?"),
    (None, "`loss:` has no value", "Write `loss: dft`", "or leave it out"),
    (True, "`loss: True` is a bool", "a mapping with `name`", "write `loss: dft`"),
    (False, "`loss: False` is a bool", "`loss: nll` for plain SFT", "Leave the line out"),
    (0.7, "`loss: 0.7` is a float", "a mapping with `name`", "write `loss: dft`"),
    (["eaft"], "`loss: ['eaft']` is a list", "a mapping with `name`", "write `loss: eaft`"),
    ({"dft": {"alpha": 0.7}}, "`loss: {dft: ...}`", "name is no key", "Write `loss: {name: dft, alpha: 0.7}`"),
    ({"dft": None}, "`loss: {dft: ...}`", "name is no key", "Write `loss: dft`."),
    ({"type": "dft", "alpha": 0.7}, "`loss.type: dft`", "is called `name`", "Write `loss: {name: dft, alpha: 0.7}`"),
    ({"name": "dtf", "alpha": 9e9}, "`loss.alpha: 9000000000.0`", "less than or equal to 100", "Did you mean `dft`?"),
    ({"alpah": 0.5}, "`alpah` is not an option of `dft`", OF_DFT, "Did you mean `alpha`?"),
    ({"Alpha": 0.5}, "`Alpha` is not an option of `dft`", OF_DFT, "Did you mean `alpha`?"),
    ({"name": "nll", "alpha": 0.5}, "`alpha` is not an option of `nll`", "name, kernel", "Allowed:"),
    ({"alpha": "high"}, "`loss.alpha: 'high'`", "should be a valid number", "Leave it out for 1.0"),
    ({"alpha": "0,5"}, "`loss.alpha: '0,5'`", "should be a valid number", "Leave it out for 1.0"),
    ({"alpha": True}, "`loss.alpha: True`", "a number is needed", "Leave it out for 1.0"),
    ({"alpha": None}, "`loss.alpha: None`", "should be a valid number", "Leave it out for 1.0"),
    ({"alpha": 9e9}, "`loss.alpha: 9000000000.0`", "less than or equal to 100", "Leave it out for 1.0"),
    ({"floor": 2}, "`loss.floor: 2`", "less than or equal to 1", "Leave it out for 0.0"),
    ({"name": "profit", "threshold": 1}, "`loss.threshold: 1`", "less than 1", "Leave it out for 0.1"),
    ({"name": "thresholded", "threshold": 1}, "'threshold': 1", "between 0 and 1", "Give a threshold"),
    ({"name": "thresholded", "keep": "abov"}, "`loss.keep: 'abov'`", "'above' or 'below'", "Did you mean `above`?"),
    ({"name": "prift", "threshold": 0.3}, "`threshold` has no effect", "give another `by`: mass", "Drop it"),
    ({"kernel": "triton"}, "`triton` is not a known name", "auto, logits, chunked", "Allowed:"),
    ({"kernal": "auto"}, "`kernal` is not an option", OF_DFT, "Did you mean `kernel`?"),
    ({"scratch_mb": "300MB"}, "`loss.scratch_mb: '300MB'`", "a whole number of MiB", "for example 300"),
    ({"scratch_mb": 1 << 30}, "`loss.scratch_mb: 1073741824`", "at most 1048576 MiB", "for example 300"),
    ({"alpha": {"from": 0, "to": 1}}, "`loss.alpha.until` is missing", "{'from': 0, 'to': 1}", "until"),
    ({"alpha": {"start": 0}}, "`loss.alpha: {'start': 0}`", "a number is needed", "has the keys `from`, `to`"),
    ({"first": "nll"}, "`loss.first: 'nll'`", "a mapping is needed", "with `name`, `for`"),
    ({"first": {"name": "nll", "for": 1.5}}, "`loss.first.for: 1.5`", "at most 1.0", "write steps as an integer"),
    ({"always_learn": ["eoss"]}, "'eoss' is neither", "eos, special, added nor a token id", "Did you mean `eos`?"),
    ({"weights": {"tokens": {"a": 9e9}}}, "9000000000.0", "less than or equal to 1000", "`loss.weights.tokens"),
    ({"weights": {"colum": "x"}}, "`loss.weights.colum: 'x'`", "column, tokens", "Did you mean `column`?"),
    ({"log": ["perplexity"]}, "'perplexity'", "'top1' or 'entropy'", "`loss.log.0"),
    ({"reference": "base"}, "`loss.reference: base`", "Those that do: prift", "Drop it"),
]

FILES = [
    # A file, words behind it.
    ("sft.yaml", b"loss: dft\nloss: nll\n", [], "line 2: `loss` stands there twice", "first in line 1", "Keep one"),
    (
        "sft.yaml",
        b"a: &a {alpha: 0.1}\nb: &b {alpha: 0.9}\nloss: {name: dft, <<: *a, <<: *b}\n",
        [],
        "`<<`",
        "twice",
        "Keep",
    ),
    ("sft.json", b'{"loss": "a", "loss": "b"}', [], "`loss` stands twice", "in one mapping", "Keep one"),
    ("sft.yaml", "loss: dft\n".encode("utf-16"), [], "sft.yaml is UTF-16", "UTF-8", "iconv -f UTF-16 -t UTF-8"),
    ("sft.yaml", "a: ü\n".encode("latin-1"), [], "byte 3, in line 1, is 0xfc", "not UTF-8", "iconv -f ISO-8859-1"),
    ("sft.yaml", b"\tloss: dft\n", [], "(line 1, column 1)", "not valid YAML", "Indent with spaces"),
    ("sft.json", b"{'loss': 'dft'}", [], "(line 1, column 2)", "double quotes", "rename it to sft.yaml"),
    ("sft.json", b'{"loss": "dft",}', [], "(line 1, column", "not valid JSON", "rename it to sft.yaml"),
    ("sft.yaml", b"- loss: dft\n", [], "sft.yaml holds a list", "a mapping of keys to values", "Give the path"),
    ("sft.yaml", b"", [], "sft.yaml is empty", "the config that you train with", "Give the path"),
    ("model.bin", b"0" * (50 << 20), [], "model.bin has 50 MiB", "at most 1", "Is it data, or a model?"),
    ("sft.yaml", b"loss.alpha: 0.7\n", [], "`loss.alpha` is a key that nobody reads", "loss: {name: dft", "Write"),
    ("sft.yaml", b"", ["loss.alpha"], "'loss.alpha'", "loss.alpha=VALUE", "or leave it out"),
    ("sft.yaml", b"", ["alpha", "0.7"], "'alpha' is not `key=value`", "loss.alpha=0.7", "for example"),
    ("sft.yaml", b"", ["+loss.alpha=1"], "'+loss.alpha=1'", "`loss=NAME`", "is written `loss.alpha=VALUE`"),
    ("sft.yaml", b"", ["loss=dft", "loss=nll"], "'loss=dft' and 'loss=nll'", "contradict each other", "Keep one"),
    ("sft.yaml", b"", ["loss.alpha=[1"], "'loss.alpha=[1'", "not valid YAML", "Mend that place"),
]

HIDDEN, WEIGHT, LABELS = torch.zeros(2, 4, 8), torch.zeros(30, 8), torch.zeros(2, 4, dtype=torch.long)
LINEAR = torch.nn.Linear(8, 30)

CALLS = [
    (lambda: linear_token_loss(HIDDEN, LINEAR, LABELS), "weight is a Linear", "[V, H]", "give its `.weight`"),
    (lambda: linear_token_loss(HIDDEN, WEIGHT.t(), LABELS), "(8, 30)", "[V, H] is needed", "Give its transpose"),
    (lambda: linear_token_loss(HIDDEN, WEIGHT, LABELS, softcap=0), "softcap is 0", "above 0", "None where the model"),
    (lambda: token_loss(HIDDEN.numpy(), LABELS), "logits is a ndarray", "a tensor [..., V]", "`torch.as_tensor(...)`"),
    (lambda: token_loss(HIDDEN, LABELS.tolist()), "labels is a list", "of shape (2, 4)", "`torch.as_tensor(...)`"),
    (lambda: token_loss(HIDDEN, LABELS, num_items="8"), "num_items is '8'", "a number or a tensor", "Leave it out"),
    (lambda: token_loss(HIDDEN, LABELS, objective="DFT"), "`DFT` is not", ALL, "Did you mean `dft`?"),
    (lambda: token_loss(HIDDEN, LABELS[:, 1:]), "shape (2, 3)", "(2, 4) positions", "with `shift=True`"),
    (lambda: attach(LINEAR), "Linear is not", "a transformers PreTrainedModel", "use dft_plugin.linear_token_loss"),
    (lambda: activate(LINEAR), "Linear is not", "a transformers Trainer", "use dft_plugin.attach(model)"),
]


def name_of(case):
    return json.dumps(case, default=str)[:60]


@pytest.mark.parametrize(
    ("loss", "given", "allowed", "next_step"), SETTINGS, ids=[name_of(case[0]) for case in SETTINGS]
)
def test_a_careless_loss_is_refused(loss, given, allowed, next_step):
    with pytest.raises(DftError) as refused:
        CATALOGUE.settings(loss)
    assert_said(str(refused.value), given, allowed, next_step)


@pytest.mark.parametrize(("name", "data", "words", "given", "allowed", "next_step"), FILES)
def test_a_careless_file_or_word_is_refused(name, data, words, given, allowed, next_step, tmp_path):
    (tmp_path / name).write_bytes(data if data or not words else TRL.encode())
    with pytest.raises(DftError) as refused:
        load(tmp_path / name, words)
    assert_said(str(refused.value), given, allowed, next_step)


@pytest.mark.parametrize(("call", "given", "allowed", "next_step"), CALLS)
def test_a_careless_call_is_refused(call, given, allowed, next_step):
    with pytest.raises(DftError) as refused:
        call()
    assert_said(str(refused.value), given, allowed, next_step)


@pytest.mark.parametrize(
    ("words", "given", "allowed", "next_step"),
    [
        (["check", "sft.yaml", "--host", "tlr"], "--host tlr", "Known: axolotl", "Did you mean `trl`?"),
        (["check", "no.yaml"], "no.yaml cannot be read", "the config that you train with", "Give the path"),
        (["check", "--loss.alpha", "1", "sft.yaml"], "'--loss.alpha'", "comes first", "`sft.yaml --loss.alpha"),
        (["check", "other.yaml"], "Its keys are model", "known: axolotl", "Choose with --host"),
        (["losses", "dtf"], "dtf", "dft, nll", "Did you mean `dft`?"),
    ],
)
def test_a_careless_command_is_refused(words, given, allowed, next_step, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sft.yaml").write_text(TRL + "loss: dft\n")
    Path("other.yaml").write_text("model: m\nloss: dft\n")
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, DftError), done.output
    assert_said(str(done.exception), given, allowed, next_step)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loss:\n", "`loss:` has no value. Write `loss: dft`, or leave it out to train the host's own loss."),
        ("los: dft\n", "has no `loss:`. Is `los` meant to be `loss`? Add the line `loss: dft`."),
    ],
)
def test_a_line_that_is_none_is_named_with_all_else_that_is_wrong(text, says, tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text(TRL + "label_smoothing_factor: 0.1\n" + text)
    done = CliRunner().invoke(app, ["check", str(path), "--json"])
    report = json.loads(done.stdout)
    assert done.exit_code == 1
    assert says in report["problems"][0]
    assert [conflict["key"] for conflict in report["conflicts"]] == ["label_smoothing_factor"]


def assert_said(text, *parts):
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in {text!r}"
