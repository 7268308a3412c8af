"""LLaMA-Factory's v1 trainer (USE_V1=1) with the loss active: the numbers of a step, the log, the guard."""

from __future__ import annotations

import json

import pytest
import torch
from support import counted, tiny, wording

pytest.importorskip("llamafactory")

from support import factory

if factory.OLD:
    pytest.skip("its v1 trainer is another one, and refused", allow_module_level=True)

from support import factory_v1

from dft_llamafactory import run_v1
from dft_plugin.errors import ConflictError, NotActiveError

pytestmark = [pytest.mark.host, *factory_v1.WARNS]

KINDS = {
    "full": {},
    "tied": {"model": "tied"},
    "lora": factory_v1.LORA,
    "dora": {"peft_config": {**factory_v1.LORA["peft_config"], "use_dora": True}},
    "freeze": {"peft_config": {"name": "freeze", "freeze_trainable_layers": 1}},
    "weights": {"data": "weights.json", "global_batch_size": 8},
    "no-checkpointing": {"enable_activation_checkpointing": False},
    "moe": {"model": "moe"},
}
"""Changes of the config."""

SPLIT = {"micro_batch_size": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's folder, with a space in its name."""
    return factory_v1.make_home(tmp_path_factory.mktemp("a user"))


@pytest.mark.parametrize("split", [{}, SPLIT], ids=["four-rows-at-once", "row-by-row"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_equals_the_float64_step(kind, split, home, tmp_path):
    """The gradient, too: SGD with a rate of 1 shows all of it."""
    config = factory_v1.arguments(home, tmp_path, **KINDS[kind], **split, max_steps=1)
    run = factory_v1.train(config, "dft")
    assert len(run.batches) == config["global_batch_size"] // config["micro_batch_size"]
    assert run.losses[0] == pytest.approx(run.expected, rel=1e-6)
    assert tiny.max_gap(run.stepped, run.after) < 1e-6
    assert run.moved > 1e-4, "nothing was trained"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "moe"])
def test_a_step_row_by_row_equals_one_of_four_rows_at_once(kind, home, tmp_path):
    """Not so for a router's loss, which the model makes of each micro-batch by itself."""
    config = factory_v1.arguments(home, tmp_path, **KINDS[kind])
    whole, split = factory_v1.train(config, "dft"), factory_v1.train({**config, **SPLIT}, "dft")
    assert tiny.max_gap(whole.after, split.after) < 1e-6
    assert whole.losses == pytest.approx(split.losses, rel=1e-5)
    assert whole.moved > 1e-4, "nothing was trained"


def test_batches_of_a_token_budget_are_trained_exactly(home, tmp_path):
    config = factory_v1.arguments(
        home, tmp_path, batching_strategy="dynamic_batching", micro_batch_size=1, global_batch_size=2, max_steps=1
    )
    run = factory_v1.train(config, "dft")
    assert len({len(batch["labels"]) for batch in run.batches}) == 2, "the data do not show it"
    assert run.losses[0] == pytest.approx(run.expected, rel=1e-6)
    assert tiny.max_gap(run.stepped, run.after) < 1e-6


def test_rows_of_dynamic_padding_free_see_each_other_without_flash_attention(home):
    """Why it is refused; v1 itself checks `padding_free` only. The last row alone has other logits."""
    from llamafactory.v1.plugins.trainer_plugins.batching import _pack_padding_free_samples
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(home / "llama", attn_implementation="sdpa")
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}, {"input_ids": [9, 10, 11], "labels": [9, 10, 11]}]
    with torch.no_grad():
        both, last = (
            model(**_pack_padding_free_samples(given, 64), use_cache=False).logits[0, -3:]
            for given in (rows, rows[1:])
        )
    assert (both - last).abs().max() > 0.1


def test_the_label_of_position_0_is_never_counted(home, tmp_path):
    """v1 itself counts it in the share that a micro-batch has in its step."""
    config = factory_v1.arguments(home, tmp_path, data="weights.json", **SPLIT, global_batch_size=8, max_steps=1)
    ours, theirs = factory_v1.train(config, {"name": "dft", "alpha": 0}), factory_v1.train(config)
    opening = sum(int((batch["labels"][:, 0] != -100).sum()) for batch in ours.batches)
    assert opening, "the data do not show it"
    assert ours.logs[0]["dft/tokens"] == ours.targets
    assert ours.losses[0] == pytest.approx(ours.logs[0]["dft/nll"], rel=1e-6)
    assert theirs.losses[0] != pytest.approx(ours.losses[0], rel=1e-4)


def test_a_micro_batch_without_targets_adds_nothing(home, tmp_path):
    config = factory_v1.arguments(home, tmp_path, "moe", "weights.json", **SPLIT, max_steps=1)
    run = factory_v1.train(config, "dft")
    assert any(bool((batch["labels"] == -100).all()) for batch in run.batches), "the data do not show it"
    assert tiny.max_gap(run.stepped, run.after) < 1e-6


@pytest.mark.parametrize("kind", ["full", "lora", "no-checkpointing"])
def test_nll_trains_as_stock_cross_entropy_does(kind, home, tmp_path):
    config = factory_v1.arguments(home, tmp_path, **KINDS[kind], micro_batch_size=2)
    stock, ours = factory_v1.train(config), factory_v1.train(config, "nll")
    # v1 divides twice by a count to which it has added 1e-6.
    assert tiny.max_gap(stock.after, ours.after) < 1e-5
    assert stock.losses == pytest.approx(ours.losses, rel=1e-5)
    assert not any(key.startswith("dft/") for entry in stock.logs for key in entry)


def test_no_cross_entropy_is_computed_so_ligers_is_superseded(home, tmp_path, monkeypatch):
    """In training, v1 turns Liger's fused loss off; what is left of it stands in the place of this function."""

    def cross_entropy(*args, **kwargs):
        pytest.fail("cross-entropy was computed")

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)
    run = factory_v1.train(factory_v1.arguments(home, tmp_path, max_steps=1), "dft")
    assert run.losses[0] == pytest.approx(run.expected, rel=1e-6)


def test_labels_of_weight_0_are_no_targets():
    from dft_llamafactory.trainer_v1 import only_targets

    labels = torch.tensor([[5, 6, 7, -100], [8, 9, 10, 11]])
    weights = torch.tensor([[1.0, 0.0, 1.0, 0.3], [0.5, 1.0, 1.0, 0.0]])
    batch = {"labels": labels, "loss_weights": weights}
    assert only_targets(batch)["labels"].tolist() == [[-100, -100, 7, -100], [-100, 9, 10, -100]]
    assert batch["labels"][0, 0] == 5, "the caller's batch was changed"


def test_a_fractional_weight_is_refused(home, tmp_path):
    config = factory_v1.arguments(home, tmp_path, data="fractional.json")
    with pytest.raises(ConflictError) as caught:
        factory_v1.train(config, "dft")
    assert str(caught.value) == (
        "`loss_weight`: the data give a token the weight 0.5, and `loss:` weighs tokens by their probability; 0 and 1 "
        "are allowed, which say whether a token is trained. Set `loss_weight` of each message to 0 or 1, or leave out "
        "`loss:`."
    )


def test_statistics_are_in_the_log_that_v1_writes(home, tmp_path):
    """At a rate of 0: those of two steps, and the likelihood that a stock run has."""
    still = {"optim_config": {"name": "sgd", "lr": 0.0}, "max_steps": 2}
    stock = factory_v1.train(factory_v1.arguments(home, tmp_path / "stock", **still))
    ours = factory_v1.train(factory_v1.arguments(home, tmp_path / "ours", **still), "dft")
    factory_v1.train(factory_v1.arguments(home, tmp_path / "rare", **still, logging_steps=2, **SPLIT), "dft")
    each, (both,) = factory_v1.history(tmp_path / "ours"), factory_v1.history(tmp_path / "rare")
    assert [entry["dft/nll"] for entry in each] == pytest.approx(stock.losses, rel=1e-5)
    assert [entry["dft/loss"] for entry in each] == pytest.approx(ours.losses, rel=1e-6)
    assert both["dft/tokens"] == sum(entry["dft/tokens"] for entry in each)
    counted.assert_agree(tmp_path / "ours", each)
    counted.assert_agree(tmp_path / "rare", [both])
    total = sum(entry["dft/mean_prob"] * entry["dft/tokens"] for entry in each)
    assert both["dft/mean_prob"] == pytest.approx(total / both["dft/tokens"], rel=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, home, tmp_path):
    config = factory_v1.arguments(home, tmp_path, **KINDS[kind], max_steps=4, save_steps=2)
    straight = factory_v1.train(config, "dft")
    resumed = factory_v1.train({**config, "resume_from_checkpoint": str(tmp_path / "checkpoint-2")}, "dft")
    assert [entry["step"] for entry in resumed.logs] == [3, 4]
    lines = [json.loads(line) for line in (tmp_path / "dft_probabilities.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4, 3, 4]
    assert "dft/loss" in resumed.logs[-1]
    assert tiny.max_gap(straight.after, resumed.after) < 1e-7


def untouched(home, tmp_path, spoil):
    """Spoil a run once its trainer is made; return the error that stops it, and how far training went."""
    from dft_llamafactory.trainer_v1 import LossTrainer

    made = []
    init = LossTrainer.__init__

    def spoiling(self, *args, **kwargs):
        init(self, *args, **kwargs)
        spoil(self)
        made.append((self, tiny.weights(self.model)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossTrainer, "__init__", spoiling)
        with pytest.raises(NotActiveError) as caught:
            factory_v1.train(factory_v1.arguments(home, tmp_path), "dft")
    ((trainer, before),) = made
    return str(caught.value), tiny.max_gap(before, tiny.weights(trainer.model))


def test_a_forward_that_is_taken_over_stops_the_run_before_anything_moves(home, tmp_path):
    def spoil(trainer):
        trainer.model.forward = type(trainer.model).forward.__get__(trainer.model)

    text, moved = untouched(home, tmp_path, spoil)
    assert "a training step ended without the loss that `loss:` asks for" in text
    assert moved == 0


def test_a_step_that_goes_past_our_method_stops_the_run_before_anything_moves(home, tmp_path):
    """As v1's context parallelism would."""

    def spoil(trainer):
        trainer.compute_loss = lambda batch: trainer.model(**batch_inputs(batch)).logits.mean()

    def batch_inputs(batch):
        return {key: batch[key] for key in ("input_ids", "attention_mask")}

    text, moved = untouched(home, tmp_path, spoil)
    assert "optimizer did not step on it" in text
    assert moved == 0


def test_a_run_that_made_no_trainer_of_ours_is_an_error():
    from dft_llamafactory.arguments import read

    with pytest.raises(NotActiveError, match="Do not use what it saved"):
        run_v1.run_with_loss(lambda args: None, read({"model": "m", "train_dataset": "d", "loss": "dft"}))


def test_the_trainer_of_the_module_is_as_it_was_after_a_run(home, tmp_path):
    from llamafactory.v1.trainers import sft_trainer

    plain = sft_trainer.SFTTrainer
    with pytest.raises(ConflictError):
        factory_v1.train(factory_v1.arguments(home, tmp_path, data="fractional.json"), "dft")
    assert sft_trainer.SFTTrainer is plain


def test_a_model_without_tokens_is_refused(home, tmp_path, monkeypatch):
    from dft_llamafactory import conflicts_v1
    from dft_plugin.errors import UnsupportedModelError

    monkeypatch.setattr(conflicts_v1, "V1_RULES", ())
    with pytest.raises(UnsupportedModelError, match="is not a causal language model"):
        factory_v1.train(factory_v1.arguments(home, tmp_path, model_class="cls"), "dft")


@pytest.mark.parametrize("template", ["chatml", "qwen3", "qwen3_nothink"])
def test_what_ends_an_answer_is_what_v1s_template_writes(template):
    from llamafactory.v1.core.utils.rendering import Renderer

    from dft_llamafactory.trainer_v1 import ends_of_answers

    tokenizer = wording.bytewise(None)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ends_of_answers(Renderer(template, tokenizer)) == [end]
    assert ends_of_answers(Renderer(template, wording.wordwise())) == []


def test_tokens_are_always_learned_and_weighed(home, tmp_path, capsys):
    loss = {"name": "dft", "always_learn": ["eos", 5], "weights": {"tokens": {"w7": 3.0, 9: 0.5}}}
    run = factory_v1.train(factory_v1.arguments(home, tmp_path, max_steps=1), loss)
    assert (
        "; always learned: 2 tokens (eos `</s>`, ids `w5`); weights: `w7` x 3, `w9` x 0.5" in capsys.readouterr().err
    )
    assert {"dft/always_learn_share", "dft/data_weight"} <= run.logs[0].keys()


def test_a_token_that_is_none_is_refused(home, tmp_path):
    with pytest.raises(ConflictError, match="'w1 w2' is 2 tokens"):
        factory_v1.train(factory_v1.arguments(home, tmp_path), {"name": "dft", "weights": {"tokens": {"w1 w2": 2.0}}})


def test_what_was_trained_stands_beside_what_is_saved_and_another_loss_does_not_go_on(home, tmp_path):
    config = factory_v1.arguments(home, tmp_path, **KINDS["lora"], max_steps=2, save_steps=2)
    factory_v1.train(config, {"name": "dft", "alpha": 0.5})
    for folder, step in (("checkpoint-2", 2), ("checkpoint-2/model", 2), ("", 2)):
        found = json.loads((tmp_path / folder / "dft_loss.json").read_text())
        assert (found["loss"]["alpha"], found["step"], found["max_steps"]) == (0.5, step, 2)
        assert [one["from_step"] for one in found["computed"]] == [1]
    assert "The loss was `dft(alpha=0.5, floor=0.0)`" in (tmp_path / "README.md").read_text()
    resumed = {**config, "max_steps": 3, "resume_from_checkpoint": "auto"}
    with pytest.raises(ConflictError, match=r"trained with dft\(alpha=0\.5.*would go on with nll.*resume: allow"):
        factory_v1.train(resumed, "nll")
    factory_v1.train(resumed, {"name": "dft", "alpha": 0.5})
    finished = json.loads((tmp_path / "dft_loss.json").read_text())
    assert finished["step"] == 3
    # A finished run that is started again trains nothing, and says so.
    again = factory_v1.train({**resumed, "max_steps": 2}, {"name": "dft", "alpha": 0.5})
    assert again.logs == []
    assert json.loads((tmp_path / "dft_loss.json").read_text())["computed"] == finished["computed"]
