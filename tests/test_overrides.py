"""Words of a command line that reach into what stands after `loss:`, in every spelling and order."""

from __future__ import annotations

from itertools import permutations

import pytest

from dft_plugin.config.overrides import split, with_option
from dft_plugin.config.reading import load
from dft_plugin.errors import SettingsError


@pytest.mark.parametrize(
    ("before", "words", "after"),
    [
        (
            {"name": "dft", "alpha": 0.7},
            [("alpha.from", 0), ("alpha.to", 1), ("alpha.until", 0.3)],
            {"name": "dft", "alpha": {"from": 0, "to": 1, "until": 0.3}},
        ),
        ("dft", [("weights.column", "ratio")], {"name": "dft", "weights": {"column": "ratio"}}),
        ({"first": "nll"}, [("first.for", 3)], {"first": {"name": "nll", "for": 3}}),
        (None, [("first.name", "nll"), ("first.for", 3)], {"first": {"name": "nll", "for": 3}}),
        (None, [("alpha", 0.5)], {"alpha": 0.5}),
    ],
)
def test_an_override_reaches_into_what_stands_there(before, words, after):
    for key, value in words:
        before = with_option(before, key.split("."), value)
    assert before == after


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text("loss: {name: eaft, alpha: 0.9}\nlearning_rate: 1\nnested: {a: 1, b: 2}\n")
    return path


SPELLINGS = [
    ("loss.alpha=0.5",),
    ("loss[alpha]=0.5",),
    ("loss['alpha']=0.5",),
    ("--loss.alpha", "0.5"),
    ("--loss.alpha=0.5",),
    ("-loss.alpha=0.5",),
]


@pytest.mark.parametrize("words", SPELLINGS, ids=" ".join)
def test_every_spelling_of_an_option_is_kept(config, words):
    assert load(config, words).loss == {"name": "eaft", "alpha": 0.5}


@pytest.mark.parametrize("words", [("--loss.scratch-mb", "64"), ("--loss[scratch_mb]=64",)], ids=" ".join)
def test_dashes_of_a_command_line_are_the_keys_own_underscores(config, words):
    assert load(config, words).loss["scratch_mb"] == 64


def test_the_order_of_the_words_does_not_matter(config):
    words = ["loss=dft", "loss.alpha=0.5", "loss.first.for=3", "loss.first=nll", "learning_rate=2"]
    for order in permutations(words):
        read = load(config, order)
        assert read.loss == {"name": "dft", "alpha": 0.5, "first": {"name": "nll", "for": 3}}
        assert read.overrides == [("learning_rate", "2")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["loss.alpha=0.5", "loss.alpha=0.7"],
            "overrides 'loss.alpha=0.5' and 'loss.alpha=0.7' contradict each other.",
        ),
        (["loss.alpha=0.5", "--loss[alpha]", "0.7"], "'--loss[alpha] 0.7' contradict each other. Keep one."),
        (["loss=dft", "loss=nll"], "contradict each other. Keep one."),
        (["loss.name=dft", "loss=nll"], "contradict each other. Keep one."),
        (["loss.alpha.from=0", "loss.alpha=0.5"], "contradict each other. Keep one."),
        (["loss="], "override 'loss=' has no value. Write `loss=VALUE`, or leave it out."),
        (["loss.alpha="], "override 'loss.alpha=' has no value. Write `loss.alpha=VALUE`, or leave it out."),
        (["--loss"], "override '--loss' has no value."),
        (["--loss.alpha", "--seed", "3"], "override '--loss.alpha' has no value."),
        (["loss"], "override 'loss' has no value."),
        (["loss.=1"], "override 'loss.=1': an option of the loss is written `loss.alpha=VALUE`"),
        (["loss..alpha=1"], "an option of the loss is written `loss.alpha=VALUE`, and the loss itself `loss=NAME`."),
        (["loss[alpha=1"], "an option of the loss is written `loss.alpha=VALUE`"),
        (["loss[]=1"], "an option of the loss is written"),
        (["+loss.alpha=1"], "override '+loss.alpha=1': an option of the loss is written `loss.alpha=VALUE`"),
        (["LOSS=dft"], "override 'LOSS=dft': an option of the loss is written"),
        (["loss__floor=1"], "an option of the loss is written `loss.floor=VALUE`"),
        (["loss:floor=1"], "an option of the loss is written `loss.floor=VALUE`"),
        (
            ["loss.weights.tokens.11=2"],
            "whether `11` is an id or a text cannot be told. Write `loss.weights.tokens={11",
        ),
        (["loss.alpha=[1"], "override 'loss.alpha=[1' is not valid YAML"),
        (["loss={name: dft, alpha: 1, alpha: 2}"], "`alpha` stands there twice"),
        (["loss.alpha", "0.5"], "override '0.5' is not `key=value`; write `loss.alpha=0.5`."),
        (["seed", "3"], "override 'seed' is not `key=value`"),
        (["=3"], "override '=3' is not `key=value`"),
    ],
)
def test_what_is_not_kept_is_refused_with_what_to_write(config, words, says):
    with pytest.raises(SettingsError) as refused:
        load(config, words)
    assert says in str(refused.value)


def test_words_that_cannot_be_read_are_named_together(config):
    with pytest.raises(SettingsError) as refused:
        load(config, ["seed", "+loss.alpha=1", "3"])
    assert len(refused.value.problems) == 3


def test_the_same_word_twice_says_nothing_else(config):
    assert load(config, ["loss.alpha=0.5", "--loss.alpha", "0.5"]).loss["alpha"] == 0.5


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        (["--learning-rate", "1e-4"], [("learning_rate", "1e-4")]),
        (["--learning_rate=1e-4"], [("learning_rate", "1e-4")]),
        (["--learning_rate", "-1"], [("learning_rate", "-1")]),
        (["--packing"], [("packing", "true")]),
        (["--packing", "--seed", "3"], [("packing", "true"), ("seed", "3")]),
        (["--no-packing"], [("packing", "false")]),
        (["--no_packing"], [("packing", "false")]),
        (["nested.a=3"], [("nested.a", "3")]),
        (["nested[a]=3"], [("nested.a", "3")]),
        (["notes="], [("notes", "")]),
        (["loss_type=dft"], [("loss_type", "dft")]),
        (["text=a=b"], [("text", "a=b")]),
    ],
)
def test_what_is_the_hosts_is_handed_on(config, words, pairs):
    assert load(config, words).overrides == pairs


def test_an_override_reaches_into_the_hosts_mappings(config):
    read = load(config, ["nested.a=3", "new.b.c=1"])
    assert read.host["nested"] == {"a": 3, "b": 2}
    assert read.host["new"] == {"b": {"c": 1}}


@pytest.mark.parametrize(
    ("before", "words"),
    [("--loss.alpha", ["0.5", "sft.yaml"]), ("loss.alpha=0.5", ["sft.yaml"])],
)
def test_a_config_that_does_not_come_first_is_named(tmp_path, before, words):
    with pytest.raises(SettingsError, match=r"stands where the config is expected, which comes first: `sft\.yaml"):
        load(tmp_path.__class__(before), words)


def test_words_are_grouped_and_none_is_lost():
    words = ["a=1", "--b", "2", "--c", "--d=4", "e", "--no-f", "-g", "loss[alpha]=3"]
    assert [word for one in split(words) for word in one.words] == words
