"""An attached model stays the model that it was: copies, files, generation, signature, and the way back."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import math
import pickle
import types

import pytest
import torch
from support import attached, tiny
from transformers import LlamaForCausalLM

from dft_plugin import Attachment, attach
from dft_plugin.errors import NotActiveError


def loss_of(model):
    with torch.no_grad():
        return model(**tiny.batch()).loss.item()


def true_loss(model):
    """Of the model without any attachment, whatever stands in its forward."""
    plain = LlamaForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    return attached.truth(plain.train(model.training), tiny.batch())[0]


def test_generate_gives_the_same_tokens():
    model, prompt = tiny.llama().eval(), tiny.batch()["input_ids"][:, :6]
    before = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
    attach(model)
    loss_of(model)
    after = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
    assert torch.equal(before, after)


def test_generate_still_refuses_arguments_that_the_model_does_not_know():
    model, prompt = tiny.llama().eval(), tiny.batch()["input_ids"][:, :6]
    attach(model)
    with pytest.raises(ValueError, match="not_an_argument"):
        model.generate(prompt, max_new_tokens=2, not_an_argument=1)


def test_without_labels_nothing_changes():
    model, batch = tiny.llama().train(), tiny.batch()
    del batch["labels"]
    stock = model(**batch)
    attachment = attach(model)
    ours = model(**batch)
    assert torch.equal(ours.logits, stock.logits)
    assert ours.loss is None
    assert attachment.calls == 0


def test_the_signature_is_the_models_own():
    model = tiny.llama()
    before = inspect.signature(model.forward)
    attach(model)
    assert inspect.signature(model.forward) == before
    assert model.forward.__name__ == "forward"
    assert not hasattr(model.forward, "__wrapped__"), "accelerate would walk past us along it"
    again = pickle.loads(pickle.dumps(model))
    assert list(inspect.signature(again.forward).parameters) == list(before.parameters)


def test_save_pretrained_writes_the_same_files(tmp_path):
    model = tiny.llama()
    model.save_pretrained(tmp_path / "stock")
    attach(model)
    loss_of(model)
    model.save_pretrained(tmp_path / "ours")
    stock, ours = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("stock", "ours")
    )
    assert stock == ours
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    assert "forward" not in loaded.__dict__
    assert tiny.max_gap(tiny.weights(loaded), tiny.weights(model)) == 0.0


def test_the_module_tree_and_the_state_dict_are_untouched():
    model = tiny.llama()
    modules, state = list(model.modules()), list(model.state_dict())
    attach(model)
    attached.backward(model, tiny.batch())
    assert list(model.modules()) == modules
    assert list(model.state_dict()) == state
    assert "_loss_function" not in model.__dict__


def copy_by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def copy_by_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy_by_pickle, copy_by_torch_save])
@pytest.mark.parametrize("warm", [False, True])
def test_a_copy_runs_its_own_weights_and_is_attached(duplicate, warm):
    model = tiny.llama().train()
    attach(model)
    if warm:
        loss_of(model)
    twin = duplicate(model)
    attached.noisy(twin, 0.2)
    assert isinstance(twin.forward, Attachment)
    assert twin.forward.model is twin
    assert loss_of(twin) == pytest.approx(true_loss(twin), rel=1e-6)
    assert loss_of(model) == pytest.approx(true_loss(model), rel=1e-6)
    assert loss_of(twin) != pytest.approx(loss_of(model), rel=1e-2)
    twin.forward.detach()
    assert isinstance(model.forward, Attachment)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy_by_pickle])
def test_a_copy_of_a_model_whose_forward_stood_on_the_instance_runs_its_own_weights(duplicate):
    model = tiny.llama().train()
    model.forward = LlamaForCausalLM.forward.__get__(model)
    attach(model)
    twin = attached.noisy(duplicate(model), 0.2)
    assert loss_of(twin) == pytest.approx(true_loss(twin), rel=1e-6)


def test_detach_restores_the_class_forward():
    model = tiny.llama()
    stock = loss_of(model)
    attachment = attach(model)
    assert loss_of(model) != stock
    attachment.detach()
    assert "forward" not in model.__dict__
    assert loss_of(model) == stock
    attachment.detach()


def test_detach_restores_a_forward_that_stood_on_the_instance():
    model = tiny.llama()
    mine = LlamaForCausalLM.forward.__get__(model)
    model.forward = mine
    attach(model).detach()
    assert model.__dict__["forward"] is mine


def test_detach_under_somebody_elses_forward_leaves_that_and_answers_no_more():
    model = tiny.llama()
    stock = loss_of(model)
    attachment = attach(model)
    model.forward = somebody_elses = types.MethodType(wrapped(model.forward.__func__), model)
    attachment.detach()
    assert model.__dict__["forward"] is somebody_elses
    assert loss_of(model) == stock
    assert attachment.calls == 0
    again = attach(model)
    assert loss_of(model) == pytest.approx(true_loss(model), rel=1e-6)
    assert again.calls == 1


def wrapped(function):
    """As accelerate wraps a forward for mixed precision."""

    @functools.wraps(function)
    def forward(*args, **kwargs):
        return function(*args, **kwargs)

    return forward


def test_a_second_attachment_replaces_the_first():
    model, batch = tiny.llama().train(), tiny.batch()
    expected = attached.truth(model, batch, lambda p: torch.ones_like(p))
    first = attach(model)
    second = attach(model, "nll")
    assert model.forward is second
    assert second.previous is None
    attached.assert_same(attached.backward(model, batch), expected)
    first.detach()
    assert model.forward is second, "the old one is out of the game"
    second.detach()
    assert "forward" not in model.__dict__


def test_statistics_are_kept_apart_for_training_and_evaluation_until_drained():
    model, batch = tiny.llama().train(), tiny.batch()
    attachment = attach(model)
    for _ in range(2):
        loss_of(model)
    model.eval()
    loss_of(model)
    count = int((batch["labels"][:, 1:] != -100).sum())
    assert attachment.drain(training=True).as_logs()["dft/tokens"] == 2 * count
    assert attachment.drain(training=False).as_logs()["dft/tokens"] == count
    assert not attachment.drain(training=True).as_logs()


def mixed_precision(model, precision="bf16"):
    """Prepare a model as a Trainer does, in this process only."""
    from accelerate import Accelerator

    return Accelerator(cpu=True, mixed_precision=precision).prepare_model(model)


@pytest.mark.parametrize("duplicate", [copy.deepcopy])
@pytest.mark.parametrize("warm", [False, True])
def test_a_copy_made_after_accelerate_has_wrapped_the_forward_runs_its_own_weights(duplicate, warm):
    model = tiny.llama().train()
    attachment = attach(model)
    prepared = mixed_precision(model)
    if warm:
        loss_of(prepared)
    twin = duplicate(prepared)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert twin(input_ids=tiny.batch()["input_ids"]).logits.abs().max() == 0
    calls = attachment.calls
    assert loss_of(twin) == pytest.approx(math.log(tiny.VOCAB) / tiny.VOCAB, rel=1e-2)
    assert attachment.calls == calls, "the copy has an attachment of its own"


def test_the_way_back_after_accelerate_has_wrapped_the_forward():
    from accelerate import Accelerator

    model, batch = tiny.llama().train(), tiny.batch()
    prompt = batch["input_ids"][:, :4]
    attachment = attach(model)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare_model(model)
    loss_of(prepared)
    bare = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert bare.generate(prompt, max_new_tokens=2, do_sample=False).shape == (3, 6)
    assert loss_of(bare) == pytest.approx(true_loss(bare), rel=1e-6)
    attachment.detach()
    stock = torch.nn.functional.cross_entropy(
        bare(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
    )
    assert loss_of(bare) == pytest.approx(stock.item(), rel=1e-5)
    assert bare.generate(prompt, max_new_tokens=2, do_sample=False).shape == (3, 6)


def test_detach_under_accelerates_wrapper_and_attaching_again():
    model = tiny.llama().train()
    first = attach(model)
    prepared = mixed_precision(model)
    first.detach()
    stock = loss_of(prepared)
    second = attach(prepared, "nll")
    assert loss_of(prepared) == pytest.approx(stock, rel=1e-2)
    assert second.calls == 1
    assert first.calls == 0
    attach(prepared, "dft")
    assert loss_of(prepared) == pytest.approx(true_loss(model), rel=2e-2)


@pytest.mark.parametrize("training", [True, False])
def test_regional_compilation_runs_the_copy_in_the_copys_mode(training, monkeypatch):
    from accelerate.utils import compile_regions

    model, batch = tiny.llama(), tiny.batch()
    attachment = attach(model)
    seen = []
    model.train(not training)
    regional = compile_regions(model, backend="eager").train(training)
    regional.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        output = regional(**batch)
    assert seen, "the copy's layers, not the original's"
    assert float(output.loss) == pytest.approx(true_loss(model), rel=1e-6)
    assert (output.logits is None) == training
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    assert attachment.drain(training=training).as_logs()["dft/tokens"] == tokens
    assert not attachment.drain(training=not training).as_logs()


def test_its_repr_says_what_is_on():
    model = tiny.llama().train()
    attachment = attach(model, {"name": "dft", "alpha": 0.5})
    assert repr(attachment) == (
        "<Attachment of dft(alpha=0.5, floor=0.0) to LlamaForCausalLM: before the first training batch>"
    )
    loss_of(model)
    assert "from hidden states" in repr(attachment)
    attachment.detach()
    assert "detached" in repr(attachment)


def test_a_forward_that_is_put_over_the_loss_and_bypasses_it_is_noticed_at_the_first_labelled_call():
    model, batch = tiny.llama().train(), tiny.batch()
    attachment = attach(model)
    model.forward = types.MethodType(LlamaForCausalLM.forward, model)
    with pytest.raises(NotActiveError, match=r"LlamaForCausalLM.forward, put there afterwards.*activate\(trainer\)"):
        model(**batch)
    model(input_ids=batch["input_ids"])
    model.forward = attachment
    assert loss_of(model) == pytest.approx(true_loss(model), rel=1e-6)
    attachment.detach()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
