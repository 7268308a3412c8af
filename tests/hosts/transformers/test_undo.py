"""`activate` can be undone, doing the same again is no error, another loss replaces the first."""

from __future__ import annotations

import copy
import gc
import importlib.util
import io
import weakref

import pytest
import torch
from support import passes, tiny, training

from dft_plugin import activate
from dft_plugin.errors import ConflictError, NotActiveError

pytestmark = pytest.mark.host

MAKE = {"transformers": training.trainer, "trl": training.sft_trainer}


@pytest.fixture(params=MAKE)
def make(request, tmp_path):
    if request.param == "trl" and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed")
    changes = {"loss_type": "dft"} if request.param == "trl" else {}
    return lambda *args, **more: MAKE[request.param](tmp_path, *args, **{**changes, **more})


def as_it_is(trainer):
    # A copy of the lists: they could be changed in place.
    return {
        "trainer": dict(vars(trainer)),
        "args": dict(vars(trainer.args)),
        "accelerator": dict(vars(trainer.accelerator)),
        "callbacks": list(trainer.callback_handler.callbacks),
        "model": dict(vars(trainer.model)),
    }


def test_detach_puts_everything_back(make):
    trainer, stock = make(average_tokens_across_devices=False), make(average_tokens_across_devices=False)
    before = as_it_is(trainer)
    attachment = activate(trainer)
    assert as_it_is(trainer) != before
    attachment.detach()
    assert as_it_is(trainer) == before
    for made in (trainer, stock):
        made.train()
    assert tiny.max_gap(training.trained(trainer.model), training.trained(stock.model)) == 0
    assert trainer.evaluate()["eval_loss"] == stock.evaluate()["eval_loss"]
    assert not [key for entry in trainer.state.log_history for key in entry if "dft/" in key]


def test_detach_after_training_and_activate_again(make):
    trainer = make(max_steps=1)
    before = as_it_is(trainer)
    attachment = activate(trainer, "nll")
    trainer.train()
    attachment.detach()
    now = as_it_is(trainer)
    for name in ("compute_loss", "log", "training_step", "model_accepts_loss_kwargs"):
        assert now["trainer"].get(name) == before["trainer"].get(name), name
    assert now["args"] == before["args"]
    attachment.detach()
    activate(trainer)
    expected = passes.statistics(trainer.model, training.rows(10, seed=1), "eval_")
    assert passes.of(trainer.evaluate(), "eval_") == pytest.approx(expected, rel=1e-5)


def test_the_same_again_changes_nothing(make, capsys):
    trainer = make()
    attachment = activate(trainer, {"name": "dft", "alpha": 0.5})
    before = as_it_is(trainer)
    assert activate(trainer, {"name": "dft", "alpha": 0.5}) is attachment
    assert as_it_is(trainer) == before
    assert capsys.readouterr().err.count("dft: loss dft(alpha=0.5") == 1
    once = make()
    activate(once, {"name": "dft", "alpha": 0.5})
    for made in (trainer, once):
        made.train()
    assert tiny.max_gap(training.trained(trainer.model), training.trained(once.model)) == 0


def test_another_loss_replaces_the_first(make, capsys):
    trainer, plain = make(), make()
    before = as_it_is(trainer)
    activate(trainer, "nll")
    second = activate(trainer, "dft")
    assert "dft: loss dft(" in capsys.readouterr().err
    activate(plain, "dft")
    for made in (trainer, plain):
        made.train()
    assert tiny.max_gap(training.trained(trainer.model), training.trained(plain.model)) == 0
    second.detach()
    assert as_it_is(trainer)["args"] == before["args"]
    assert trainer.model.__dict__.get("forward") == before["model"].get("forward")


@pytest.mark.parametrize("name", ["compute_loss", "training_step"])
def test_what_somebody_else_wrapped_around_us_goes_on(make, name):
    trainer, stock = make(max_steps=1), make(max_steps=1)
    attachment = activate(trainer)
    ours, calls = getattr(trainer, name), []

    def theirs(*args, **kwargs):
        calls.append(1)
        return ours(*args, **kwargs)

    setattr(trainer, name, theirs)
    attachment.detach()
    assert getattr(trainer, name) is theirs
    for made in (trainer, stock):
        made.train()
    assert calls == [1]
    assert tiny.max_gap(training.trained(trainer.model), training.trained(stock.model)) == 0


def test_a_refused_loss_leaves_the_first_one_on(make):
    trainer = make()
    activate(trainer)
    before = as_it_is(trainer)
    trainer.args.label_smoothing_factor = 0.1
    with pytest.raises(ConflictError, match="label_smoothing_factor is"):
        activate(trainer, "nll")
    trainer.args.label_smoothing_factor = 0.0
    assert as_it_is(trainer) == before


def test_a_copy_of_the_model_is_no_copy_of_the_trainer(make):
    trainer = make()
    activate(trainer)
    trainer.marker = torch.nn.Linear(1, 1)
    copied = copy.deepcopy(trainer.model)
    stored = io.BytesIO()
    torch.save(trainer.model, stored)
    assert len(stored.getvalue()) < 2_000_000
    for model in (copied, torch.load(io.BytesIO(stored.getvalue()), weights_only=False)):
        batch = training.collate(training.rows(3))
        expected = passes.statistics(model, training.rows(3))["dft/nll"]
        assert model.eval()(**batch).loss.item() == pytest.approx(expected, rel=1e-5)
    trainer.train()


def test_a_trainer_that_lost_its_model_to_another_gets_its_own_back(make):
    model, alone = tiny.llama(), make()
    first, second = make(model), make(model)
    before = as_it_is(first)
    one = activate(first)
    another = activate(second)
    with pytest.raises(NotActiveError, match="the loss was taken off this trainer's model"):
        first.train()
    another.detach()
    one.detach()
    now = as_it_is(first)
    assert now["args"] == before["args"]
    assert not [
        key for key, value in now["trainer"].items() if "dft_" in type(getattr(value, "__self__", 0)).__module__
    ]
    first.model.load_state_dict(tiny.llama().state_dict())
    for made in (first, alone):
        made.train()
    assert tiny.max_gap(training.trained(first.model), training.trained(alone.model)) == 0


def test_a_detached_trainer_leaves_the_loss_of_the_other(make):
    model, alone = tiny.llama(), make()
    first, second = make(model), make(model)
    one = activate(first)
    activate(second)
    one.detach()
    activate(alone)
    for made in (second, alone):
        made.train()
    assert tiny.max_gap(training.trained(second.model), training.trained(alone.model)) == 0


def test_the_model_keeps_no_trainer_alive(make):
    model = tiny.llama()
    trainer = make(model)
    before = vars(model).get("forward")
    attachment = activate(trainer)
    trainer.train()
    trainer.evaluate()
    alive = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert alive() is None
    attachment.detach()
    assert vars(model).get("forward") == before
