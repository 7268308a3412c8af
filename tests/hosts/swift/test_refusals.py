"""What would keep the loss from taking effect is refused before anything starts, with the text that helps."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from dft_plugin import activate
from dft_plugin.errors import ConflictError, NotActiveError
from dft_swift import arguments, autoload, conflicts, run
from dft_swift.host import SwiftHost

pytest.importorskip("swift")

from support import swift_runs

pytestmark = pytest.mark.host

LABELS = "ms-swift takes the labels from the model, so that it would never be asked for our loss."
SCALE = (
    "`loss_scale`: {0} multiplies the loss of each token by a factor of its own; for that, " + LABELS + " Use those "
    "that only choose tokens (default, last_round, all, and +ignore_empty_think, +ignore_think_prefix), or leave out "
    "`loss:`."
)
NOT_BINARY = (
    "`is_binary_loss_scale`: the loss of each token is multiplied by a factor of its own, even if that is 0 or 1; for "
    f"that, {LABELS} Remove it, or leave out `loss:`."
)
TASK = (
    "`task_type`: `loss:` weighs the tokens of supervised fine-tuning, and {0} has a loss of its own. Set `task_type: "
    "causal_lm`, or leave out `loss:`."
)
MEGATRON = (
    "`{0}`: `megatron sft` computes its loss inside Megatron, from logits that are split over ranks. ms-swift's own "
    "`enable_dft_loss: true` is the better one there: it works on the split logits. Use it instead of `loss:`."
)
ON_THE_TRAINER = [
    (
        {"enable_dft_loss": True},
        f"`enable_dft_loss`: ms-swift's own DFT would take the place of ours: {LABELS} Replace it by the line `loss: "
        "dft`. The weights after a step are the same, and you gain: most of the memory of the logits (ms-swift's DFT "
        "makes all of them, and a float32 copy), the `dft/*` statistics, options such as `alpha`, and a refusal where "
        "ms-swift drops its own switch in silence (`loss_type`, `label_smoothing_factor`).",
    ),
    (
        {"enable_channel_loss": True},
        f"`enable_channel_loss`: to log a loss for each channel, {LABELS} Remove it, or leave out `loss:`.",
    ),
    (
        {"loss_type": "cross_entropy"},
        "`loss_type`: cross_entropy would take the place of `loss:`. Remove it, or leave out `loss:`.",
    ),
    (
        {"label_smoothing_factor": 0.1},
        "`label_smoothing_factor`: ms-swift takes the labels from the model and trains smoothed cross-entropy. Remove "
        "it, or set it to 0.",
    ),
    (
        {"use_liger_kernel": True},
        "`use_liger_kernel`: Liger replaces the model's forward when training starts, and computes cross-entropy in "
        "it. Set `use_liger_kernel: false` (our loss makes no logits, either), or leave out `loss:`.",
    ),
    (
        {"predict_with_generate": True},
        "`predict_with_generate`: an evaluation that generates computes no loss, of ours or any. Set "
        "`predict_with_generate: false`, and generate with `swift infer` afterwards.",
    ),
    (
        {"tuner_backend": "unsloth"},
        "`tuner_backend`: Unsloth replaces the model's forward and computes cross-entropy in it, which was never run "
        "with ours in ms-swift. Set `tuner_backend: peft`, or leave out `loss:`.",
    ),
]
IN_CONFIG = [
    *ON_THE_TRAINER,
    *[
        ({"loss_scale": name}, SCALE.format(name))
        for name in ("hermes", "last_round+react", "qwen+ignore_empty_think")
    ],
    ({"is_binary_loss_scale": False}, NOT_BINARY),
    (
        {"sequence_parallel_size": 2},
        "`sequence_parallel_size`: the sequence is split over ranks, and ms-swift computes the loss of all shards by "
        "itself. Set it to 1, or leave out `loss:`.",
    ),
    *[({"task_type": task}, TASK.format(task)) for task in ("seq_cls", "embedding", "reranker")],
    (
        {"rlhf_type": "dpo"},
        "`rlhf_type`: `swift rlhf` trains a loss of its own (dpo). Train with `swift sft`, or leave out `loss:`.",
    ),
    *[({key: 2}, MEGATRON.format(key)) for key in ("tensor_model_parallel_size", "pipeline_model_parallel_size")],
    (
        {"use_ray": True},
        "`use_ray`: Ray starts workers that do not carry the loss. Remove it and start with torchrun "
        "(NPROC_PER_NODE=8), or leave out `loss:`.",
    ),
]


def named(cases):
    return [f"{key}={value}" for config, _ in cases for key, value in config.items()]


def refusal(config, loss="dft"):
    """What a run with this config says, before ms-swift is called."""
    words = [f"--{key}={value}" for key, value in config.items()]

    def main(argv):
        pytest.fail("ms-swift was started")

    with pytest.raises(ConflictError) as caught:
        run.run_with_loss(main, words, loss)
    return str(caught.value)


@pytest.mark.parametrize(("config", "text"), IN_CONFIG, ids=named(IN_CONFIG))
def test_a_key_in_the_way_is_refused_by_the_run_and_by_the_check(config, text):
    assert refusal(config) == text
    (found,) = SwiftHost().conflicts(config)
    assert str(found) == text


def test_what_is_off_or_only_chooses_tokens_is_not_refused():
    off = {"enable_dft_loss": False, "label_smoothing_factor": 0.0, "loss_scale": "all", "task_type": "causal_lm"}
    assert SwiftHost().conflicts({**off, "sequence_parallel_size": 1, "use_liger_kernel": "false"}) == []
    assert SwiftHost().conflicts({"loss_scale": "hermes", "is_binary_loss_scale": True}) == []


def test_every_problem_is_reported_at_once():
    text = refusal({"enable_dft_loss": True, "rlhf_type": "dpo"}, {"name": "dft", "alhpa": 1})
    assert text.startswith("3 problems:\n  - `loss.alhpa`")
    assert "\n  - `enable_dft_loss`: " in text
    assert "\n  - `rlhf_type`: " in text


class StopHereError(Exception):
    """Leaves a run whose trainer is made."""


def trainer_of(home, out, **config):
    """The trainer of a run that is stopped before its first step."""
    made = []

    def stop(trainer):
        made.append(trainer)
        raise StopHereError

    with pytest.raises(StopHereError):
        swift_runs.train(swift_runs.config(home, out, **config), None, stop)
    return made[0]


@pytest.fixture(scope="module")
def trainer(home, tmp_path_factory):
    return trainer_of(home, tmp_path_factory.mktemp("trainer") / "out")


class TestOnTheTrainerWhoeverMadeIt:
    def said(self, trainer):
        with pytest.raises(ConflictError) as caught:
            activate(trainer)
        assert "forward" not in vars(trainer.model), "a refused trainer's model must stay as it was"
        return str(caught.value)

    @pytest.mark.parametrize(("config", "text"), ON_THE_TRAINER, ids=named(ON_THE_TRAINER))
    def test_an_argument_in_the_way_is_refused(self, config, text, trainer, monkeypatch):
        for key, value in config.items():
            monkeypatch.setattr(trainer.args, key, value)
        assert self.said(trainer) == text

    @pytest.mark.parametrize("name", ["task_type", "sequence_parallel_size"])
    def test_what_its_template_came_to_is_refused(self, name, trainer, monkeypatch):
        value = "embedding" if name == "task_type" else 2
        monkeypatch.setattr(trainer.template, name, value)
        (expected,) = SwiftHost().conflicts({name: value})
        assert self.said(trainer) == str(expected)

    def test_a_template_with_a_loss_of_its_own_is_refused(self, trainer, monkeypatch):
        from swift.template.templates.gemma import DiffusionGemmaTemplate

        monkeypatch.setattr(trainer.template, "__class__", DiffusionGemmaTemplate)
        assert self.said(trainer) == (
            "`template`: DiffusionGemmaTemplate computes a loss of its own. Leave out `loss:` for this model."
        )

    @pytest.mark.parametrize(
        ("config", "text"),
        [
            ({"loss_scale": "hermes"}, SCALE.format("HermesLossScale")),
            ({"loss_scale": "hermes+ignore_empty_think"}, SCALE.format("ConcatLossScale")),
            ({"is_binary_loss_scale": False}, NOT_BINARY),
            ({"loss_type": "cross_entropy"}, ON_THE_TRAINER[2][1]),
            ({"label_smoothing_factor": 0.1}, ON_THE_TRAINER[3][1]),
        ],
        ids=["hermes", "hermes+ignore_empty_think", "not binary", "loss_type", "label smoothing"],
    )
    def test_as_ms_swift_parses_it(self, config, text, home, tmp_path):
        assert self.said(trainer_of(home, tmp_path / "out", **config)) == text

    def test_factors_that_are_forced_to_be_binary_only_choose_tokens(self, home, tmp_path):
        made = trainer_of(home, tmp_path / "out", loss_scale="hermes", is_binary_loss_scale=True)
        activate(made).detach()


def test_a_trainer_of_another_kind_is_stopped_before_its_first_step(home, tmp_path, monkeypatch):
    """Without the table: ms-swift makes a trainer that we do not know."""
    monkeypatch.setattr(conflicts, "RULES", ())
    rows = [{**row, "label": number % 2} for number, row in enumerate(swift_runs.plain_rows(8))]
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(f"{row}\n" for row in map(json.dumps, rows)))
    given = swift_runs.config(home, tmp_path / "out", dataset=[str(data)], task_type="seq_cls", num_labels=2)
    with pytest.raises(NotActiveError, match=r"ms-swift made a Trainer, which is not its Seq2SeqTrainer\. Nothing"):
        swift_runs.train(given, "dft")


def test_a_run_that_made_no_trainer_of_ours_is_an_error():
    with pytest.raises(NotActiveError, match=r"it made no Seq2SeqTrainer\. Do not use what it saved\."):
        run.run_with_loss(lambda argv: None, [], "dft")


@pytest.mark.parametrize("task", ["causal_lm", "seq_cls"])
def test_a_file_of_the_documented_door_without_its_callback_is_stopped(task, home, tmp_path):
    """Whatever trainer ms-swift makes: `swift rlhf` has others, too."""
    from swift.trainers.mixin import SwiftMixin

    import dft_swift

    plain = SwiftMixin.train
    rows = [{**row, "label": number % 2} for number, row in enumerate(swift_runs.plain_rows(8))]
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(f"{row}\n" for row in map(json.dumps, rows)))
    kind = {"task_type": task, "num_labels": 2, "dataset": [str(data)]} if task == "seq_cls" else {}
    plugin = f"{dft_swift.__path__[0]}/plugin.py"
    given = swift_runs.config(home, tmp_path / "out", external_plugins=[plugin], **kind)
    try:
        with pytest.raises(NotActiveError, match=r"no callback has put its loss .* Add `callbacks: \[dft\]`"):
            swift_runs.train(given)
    finally:
        SwiftMixin.train = plain
        # Else ms-swift would not load it again.
        for name in [name for name in sys.modules if name.startswith("_swift_external_")]:
            del sys.modules[name]


class TestOtherCommands:
    """Autoload lets the parser of all pipelines refuse; Megatron is not on this machine, so a class stands in."""

    @pytest.fixture
    def pipelines(self):
        from swift.pipelines.base import SwiftPipeline

        class Copy(SwiftPipeline):
            pass

        Copy._parse_args = SwiftPipeline._parse_args
        autoload.patch(SimpleNamespace(__name__="swift.pipelines.base", SwiftPipeline=Copy))
        return Copy

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("SwiftRLHF", "`swift rlhf` trains a loss of its own. Train with `swift sft`, or leave out `loss:`."),
            ("MegatronSft", MEGATRON.format("x").partition("computes")[2]),
            ("SwiftInfer", "of ms-swift's commands only `swift sft` and `swift pt` can train it. Leave out `loss:`."),
        ],
    )
    def test_they_say_why_they_do_not_train_it(self, name, said, pipelines):
        pipeline = type(name, (pipelines,), {"run": lambda self: None})
        with pytest.raises(ConflictError) as caught:
            pipeline(["--model", "m", "--loss", "dft"])
        assert str(caught.value).endswith(said)

    def test_without_our_words_main_functions_get_what_they_were_given(self):
        module, seen = ModuleType("swift.pipelines.train.sft"), []
        module.sft_main = seen.append
        autoload.patch(module)
        for words in (["--model", "m"], SimpleNamespace(model="m")):
            module.sft_main(words)
            assert seen[-1] is words
        assert arguments.take(["--model", "m"])[0] is None
