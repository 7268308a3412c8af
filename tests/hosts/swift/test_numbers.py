"""ms-swift with the loss active: the numbers of a step, in every way that it trains."""

from __future__ import annotations

from unittest import mock

import pytest
from support import tiny

pytest.importorskip("swift")

from support import given, oracle, swift_runs

pytestmark = pytest.mark.host

LORA = swift_runs.LORA
CHAT = {"dataset": ["chat.jsonl"]}
KINDS = {
    "full": {},
    "tied": {"model": "tied"},
    "lora": LORA,
    "dora": {**LORA, "use_dora": True},
    "qlora-4bit": {**LORA, "quant_method": "bnb", "quant_bits": 4, "bnb_4bit_compute_dtype": "float32"},
    "qlora-8bit": {**LORA, "quant_method": "bnb", "quant_bits": 8},
    "llamapro": {"tuner_type": "llamapro", "llamapro_num_new_blocks": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "multi-turn": CHAT,
    "last_round": {**CHAT, "loss_scale": "last_round"},
    "all": {**CHAT, "loss_scale": "all"},
    "ignore_empty_think": {**CHAT, "loss_scale": "last_round+ignore_empty_think"},
    "moe": {"model": "moe", "model_type": "qwen2_moe", "router_aux_loss_coef": 0.5, "learning_rate": 0.1},
    "streaming": {"streaming": True, "shuffle_buffer_size": 1},
    "packing": {"packing": True, "max_length": 60},
    "padding_free": {"padding_free": True},
    "seeing": {},
    "seeing-lora": LORA,
}
"""Changes of the config."""

SOMETIMES = ("dora", "checkpointing", "ignore_empty_think", "seeing-lora")
"""Near enough to others for every day."""

EIGHT_BIT = "qlora-8bit"
"""LLM.int8 quantises activations row by row in the forward and the gradient as a whole: batches differ by design."""

LAID_END_TO_END = ("packing", "padding_free")
"""ms-swift wants flash attention for them, which no CPU has: here rows look at each other, in all runs alike."""

ROUTED = "moe"
"""Its router's loss is in what is logged, and not in `dft/loss`."""


@pytest.fixture(scope="module")
def flash_is_not_asked_for():
    """Let ms-swift lay rows end to end whatever the attention is."""
    from swift.arguments import SftArguments

    def check(self):
        self.padding_free = self.padding_free or self.packing

    with mock.patch.object(SftArguments, "_check_padding_free", check):
        yield


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[pytest.mark.full] if kind in SOMETIMES else []) for kind in KINDS],
)
def runs(request, home, seeing, tmp_path_factory, flash_is_not_asked_for):
    """The same two steps three times: ours, ours in micro-batches of one, and ms-swift's own DFT."""
    kind = request.param
    changes = {**(seeing if "seeing" in kind else {}), **KINDS[kind]}
    if "dataset" in changes:
        changes["dataset"] = [str(home / name) for name in changes["dataset"]]

    def train(loss=None, **more):
        place = tmp_path_factory.mktemp(kind)
        config = swift_runs.config(home, place / "out", **{**changes, **more})
        return swift_runs.train(config, loss, lambda trainer: given.move_adapters(trainer.model))

    ours = train("dft")
    split = train("dft", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    theirs = train(None, enable_dft_loss=True)
    return kind, ours, split, theirs


def test_the_first_step_equals_the_float64_loss(runs):
    kind, ours, _, _ = runs
    assert ours.logs[0]["dft/loss"] == pytest.approx(ours.expected, rel=1e-6)
    if kind != ROUTED:
        assert ours.losses[0] == pytest.approx(ours.expected, rel=1e-6)
    assert tiny.max_gap(ours.before, ours.after) > 1e-4, "nothing was trained"


def test_four_micro_batches_of_one_equal_one_batch_of_four(runs):
    kind, ours, split, _ = runs
    assert len(split.batches) == 4
    assert split.logs[0]["dft/loss"] == pytest.approx(split.expected, rel=1e-6)
    if kind in (EIGHT_BIT, ROUTED):
        # The router's loss is a product of means, and so another one for each micro-batch.
        return
    assert ours.losses == pytest.approx(split.losses, rel=1e-5)
    assert tiny.max_gap(ours.after, split.after) < 1e-6


def test_weights_equal_those_of_enable_dft_loss(runs):
    _, ours, _, theirs = runs
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert tiny.max_gap(ours.after, theirs.after) < 1e-6


def train(home, out, loss=None, **changes):
    return swift_runs.train(swift_runs.config(home, out, **changes), loss)


@pytest.mark.parametrize("kind", ["full", "lora", "moe"])
def test_alpha_zero_trains_as_stock_cross_entropy_does(kind, home, tmp_path):
    changes = {**KINDS[kind], "max_steps": 1}
    stock = train(home, tmp_path / "a", None, **changes)
    ours = train(home, tmp_path / "b", {"name": "dft", "alpha": 0}, **changes)
    assert "dft/loss" in ours.logs[0]
    assert tiny.max_gap(stock.after, ours.after) < 2e-6
    assert stock.losses == pytest.approx(ours.losses, rel=1e-5)


def test_pretraining_scores_every_token(home, tmp_path):
    given = swift_runs.config(home, tmp_path / "out", dataset=[str(home / "texts.jsonl")])
    run = swift_runs.train(given, "dft", main="pretrain_main")
    assert run.losses[0] == pytest.approx(run.expected, rel=1e-6)
    (batch,) = run.batches
    assert run.logs[0]["dft/tokens"] == int(batch["attention_mask"][:, 1:].sum())


def without_targets(trainer):
    """Mask the answers of some rows, as a truncated or filtered data set may."""
    rows, encode = trainer.train_dataset, type(trainer.train_dataset).__getitem__

    def masked(self, index):
        row = encode(self, index)
        return {**row, "labels": [-100] * len(row["labels"])} if index % 3 == 0 else row

    rows.__class__ = type("Masked", (type(rows),), {"__getitem__": masked})


def test_a_micro_batch_without_targets_adds_nothing(home, tmp_path):
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    whole = swift_runs.train(swift_runs.config(home, tmp_path / "a"), "dft", without_targets)
    parts = swift_runs.train(swift_runs.config(home, tmp_path / "b", **split), "dft", without_targets)
    assert any(bool((batch["labels"] == -100).all()) for batch in parts.batches)
    assert tiny.max_gap(whole.after, parts.after) < 1e-6
    assert whole.losses == pytest.approx(parts.losses, rel=1e-5)


def test_an_objective_that_divides_by_the_tokens_it_keeps(home, tmp_path):
    loss, split = {"name": "thresholded", "threshold": 0.002}, {"per_device_train_batch_size": 1}
    kept = lambda p: (p >= 0.002).double()  # noqa: E731 - short
    whole = swift_runs.train(swift_runs.config(home, tmp_path / "a"), loss, weight=kept)
    parts = train(home, tmp_path / "b", loss, **split, gradient_accumulation_steps=4)
    (batch,) = whole.batches
    logits = _first_model(home)(batch["input_ids"], batch["attention_mask"]).logits[:, :-1]
    losses = oracle.token_losses(logits, batch["labels"][:, 1:], kept)
    assert 0 < int((losses > 0).sum()) < len(losses), "it keeps all or none"
    assert whole.losses[0] == pytest.approx(float(losses.sum() / (losses > 0).sum()), rel=1e-6)
    assert whole.losses == pytest.approx(parts.losses, rel=1e-5)
    assert tiny.max_gap(whole.after, parts.after) < 1e-5


def _first_model(home):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(home / "qwen2", dtype="float32")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, home, tmp_path):
    changes = {**KINDS[kind], "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 5}
    straight = train(home, tmp_path / "a", "dft", **changes)
    checkpoint = tmp_path / "a" / "checkpoint-2"
    resumed = train(home, tmp_path / "b", "dft", **changes, resume_from_checkpoint=str(checkpoint))
    assert resumed.trainer.state.global_step == 4
    assert len(resumed.batches) == 0, "it began anew"
    assert "dft/loss" in resumed.logs[-1]
    assert tiny.max_gap(straight.after, resumed.after) < 1e-7


def test_token_accuracy_is_what_ms_swift_counts(home, tmp_path):
    changes = {"max_steps": 6, "learning_rate": 0.5}
    stock, ours = (train(home, tmp_path / str(loss), loss, **changes) for loss in (None, "nll"))
    counted = [entry["token_acc"] for entry in ours.logs]
    assert counted == [entry["token_acc"] for entry in stock.logs]
    assert max(counted) > 0.2, "it hits nothing"


def test_a_sequence_is_right_where_all_of_its_targets_are():
    """As ms-swift's `seq_acc` has it; a row without a target is none."""
    import torch
    from swift.metrics import compute_acc

    from dft_swift.trainer import _all_right

    labels = torch.tensor([[-100, 5, 6, 7], [-100, 5, -100, 7], [-100] * 4, [-100, -100, -100, 9]])
    predicted = torch.tensor([[5, 6, 7, 0], [5, 0, 8, 0], [1, 1, 1, 0], [0, 0, 9, 0]])
    mask = labels[:, 1:] != -100
    hits = (predicted[:, :-1] == labels[:, 1:])[mask]
    theirs = compute_acc(predicted, labels, acc_strategy="seq")["seq_acc"]
    assert _all_right(hits, mask).tolist() == theirs == [True, False, True]


def test_detached_it_is_as_it_was(home, tmp_path):
    run = train(home, tmp_path / "out", "dft", max_steps=1)
    args, model = run.trainer.args, run.trainer.model
    assert args.use_logits_to_keep is False
    model.forward.detach()
    assert "forward" not in vars(model)
    assert args.use_logits_to_keep is None
