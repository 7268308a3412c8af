"""The host without a run: which config is its own, how words are read and written."""

from __future__ import annotations

import pytest

from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin import testing
from dft_plugin.config.hosts import Choice
from dft_plugin.config.settings import Settings
from dft_plugin.errors import SettingsError
from dft_swift import arguments
from dft_swift.host import SwiftHost
from dft_trl.host import TrlHost

pytest.importorskip("swift")

pytestmark = pytest.mark.host

CONFIG = {"model": "m", "tuner_type": "lora", "dataset": ["d"]}
SHORTEST = {"model": "m", "dataset": "d"}
GOES_ON = {"adapters": ["a"], "cached_dataset": "d"}
FOREIGN = {
    "trl": {"model_name_or_path": "m", "dataset_name": "d"},
    "axolotl": {"base_model": "m", "datasets": [{"path": "d"}]},
    "llamafactory": {"model_name_or_path": "m", "stage": "sft", "dataset": "d"},
    "llamafactory v1": {"model": "m", "train_dataset": "d"},
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_the_host_conforms(foreign):
    testing.check_host(SwiftHost(), CONFIG, FOREIGN[foreign])


@pytest.mark.parametrize(
    "config", [CONFIG, {"model": "m", "dataset": "d"}, {"adapters": ["a"], "cached_dataset": "d"}]
)
def test_its_configs_are_nobody_elses(config):
    assert SwiftHost().recognise(config)
    assert not TrlHost().recognise(config)
    assert not LlamaFactoryHost().recognise(config)


def test_it_says_what_it_replaces():
    assert SwiftHost().replaces(CONFIG, Settings(name="dft")) == [
        "ms-swift's cross-entropy",
        "use_logits_to_keep, which a loss without logits does not need",
    ]


def test_only_a_run_that_evaluates_chooses_a_checkpoint():
    host, val = SwiftHost(), {**CONFIG, "val_dataset": ["v"]}
    assert host.chooses_by(CONFIG) is None
    assert host.chooses_by({**val, "eval_strategy": "no"}) is None
    assert host.chooses_by(val) == Choice(None, None)
    assert host.chooses_by({**CONFIG, "split_dataset_ratio": 0.01, "metric_for_best_model": "token_acc"}) == Choice(
        "token_acc", None
    )


def test_lora_is_what_it_trains_where_nothing_is_said():
    assert SwiftHost().trains_adapters({"model": "m"})
    assert not SwiftHost().trains_adapters({"tuner_type": "full"})


class TestWords:
    def test_ours_are_taken_out_and_the_others_left_as_they_are(self):
        given = [
            "--model",
            "m",
            "--loss",
            "dft",
            "--loss.alpha",
            "0.7",
            "--dataset",
            "a",
            "b",
            "--seed=3",
            "--packing",
        ]
        loss, theirs = arguments.take(given)
        assert loss == {"name": "dft", "alpha": 0.7}
        assert theirs == ["--model", "m", "--dataset", "a", "b", "--seed=3", "--packing"]
        assert arguments.config_of(theirs) == {"model": "m", "dataset": ["a", "b"], "seed": 3, "packing": True}

    @pytest.mark.parametrize(
        ("words", "loss"),
        [
            (["--loss", "nll"], "nll"),
            (["--loss=dft", "--loss.floor=0.1"], {"name": "dft", "floor": 0.1}),
            (["--loss.alpha", "1.0e-05", "--loss", "dft"], {"name": "dft", "alpha": 1e-05}),
            (["--loss", "dft", "--loss.alpha", "1.0e-05"], {"name": "dft", "alpha": 1e-05}),
            (["--loss", "dft", "--loss.alpha", "-1"], {"name": "dft", "alpha": -1}),
            (["--loss", '{"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 0.3}}'], None),
            (["--loss_scale", "all", "--loss_type", "x"], None),
            ([], None),
        ],
    )
    def test_a_loss_is_read_as_it_is_written(self, words, loss):
        found, _ = arguments.take(words)
        if words and "until" in words[-1]:
            loss = {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 0.3}}
        assert found == loss

    @pytest.mark.parametrize("text", ["None", "null", ""])
    def test_a_key_without_a_value_is_refused(self, text):
        with pytest.raises(SettingsError, match="has no value"):
            arguments.take(["--model", "m", "--loss", text])

    def test_what_only_begins_like_ours_is_not_ours(self):
        words = ["--loss_scale", "all", "--loss_type", "cross_entropy"]
        assert arguments.take(words) == (None, words)

    @pytest.mark.parametrize(
        ("key", "text", "words"),
        [
            ("learning_rate", "1e-4", ["1e-4"]),
            ("dataset", "[a, 'b c']", ["a", "b c"]),
            ("model_kwargs", "{fps: 2}", ['{"fps": 2}']),
            ("output_dir", "an out", ["an out"]),
            ("packing", "true", ["true"]),
        ],
    )
    def test_an_override_is_written_as_a_key_of_the_yaml(self, key, text, words):
        assert arguments.words_of(key, text) == [f"--{key}", *words]
