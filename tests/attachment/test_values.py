"""What an attached model answers: the value and every gradient, against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from support import attached, oracle, tiny

from dft_plugin import attach
from dft_plugin.errors import LabelError


def aligned(batch):
    """The same targets as `shift_labels`, shifted by hand."""
    shifted = torch.full_like(batch["labels"], -100)
    shifted[:, :-1] = batch["labels"][:, 1:]
    return {**{key: value for key, value in batch.items() if key != "labels"}, "shift_labels": shifted}


FAMILIES = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "phi, bias": ("phi", {}),
    "gptj, bias": ("gptj", {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4}),
    "gpt2, tied": ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2, "embd_pdrop": 0.0}),
    "gemma2, softcap": ("gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}),
    "gemma3, softcap": ("gemma3_text", {"final_logit_softcapping": 2.0, "head_dim": 8}),
    "cohere, scale": ("cohere", {"logit_scale": 0.3}),
    "cohere2, scale": ("cohere2", {"logit_scale": 0.3}),
    "granite, divisor": ("granite", {"logits_scaling": 7.0}),
    "granitemoe, divisor": ("granitemoe", {"logits_scaling": 7.0, "num_local_experts": 4}),
    "falcon_h1, multiplier": (
        "falcon_h1",
        {"lm_head_multiplier": 1.7, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 8},
    ),
    "minicpm3, width": (
        "minicpm3",
        {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
    ),
    "recurrent_gemma, softcap": ("recurrent_gemma", {"logits_soft_cap": 2.0, "lru_width": 32, "use_cache": False}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "mamba": ("mamba", {"state_size": 8}),
    "bloom": ("bloom", {"n_head": 4, "hidden_dropout": 0.0}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}),
}


def family(name):
    model_type, changes = FAMILIES[name]
    try:
        model = attached.build(model_type, **changes)
    except KeyError:
        pytest.skip(f"this transformers has no {model_type}")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


# Cohere2 of transformers 4.56 reads an attribute that it has deprecated itself.
@pytest.mark.filterwarnings("ignore:The `sliding_window_pattern`:FutureWarning")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kernel", ["chunked", "logits"])
def test_loss_and_gradients_of_each_family_equal_float64(name, kernel):
    model, batch = family(name), tiny.batch()
    try:
        theirs = [attached.truth(model, batch) for _ in range(2)][1]
    except RuntimeError as error:
        pytest.skip(f"this transformers cannot train it: {str(error)[:60]}")
    attachment = attach(model, {"name": "dft", "kernel": kernel})
    # Twice: the first batch finds the route, the second takes it.
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.calls == 2
    assert attachment.route.path == ("lean" if kernel == "chunked" else "logits")


@pytest.mark.parametrize("kernel", ["chunked", "reference", "logits"])
@pytest.mark.parametrize("loss", ["dft", "nll"])
def test_labels_and_shift_labels_give_the_same_value(kernel, loss):
    model, batch = tiny.llama(), tiny.batch()
    theirs = attached.truth(model, batch, getattr(oracle, loss))
    attach(model, {"name": loss, "kernel": kernel})
    attached.assert_same(attached.backward(model, batch), theirs)
    attached.assert_same(attached.backward(model, aligned(batch)), theirs)
    both = {**aligned(batch), "labels": torch.full_like(batch["labels"], 7)}
    attached.assert_same(attached.backward(model, both), theirs)


def test_shift_labels_score_the_last_position_too():
    model, batch = tiny.llama(), aligned(tiny.batch())
    batch["shift_labels"][0, -1] = 5
    theirs = attached.truth(model, batch)
    attach(model)
    attached.assert_same(attached.backward(model, batch), theirs)


def test_labels_may_be_positional():
    model, batch = tiny.llama(), tiny.batch()
    expected = attached.truth(model, batch)[0]
    attach(model)
    names = list(attach(model).__signature__.parameters)
    values = [batch.get(name) for name in names[: names.index("labels") + 1]]
    assert model(*values).loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kernel", ["auto", "logits"])
@pytest.mark.parametrize("num_items", [17, 17.0, torch.tensor(17), torch.tensor([17])])
def test_num_items_divides_the_sum(num_items, kernel):
    model, batch = tiny.llama(), tiny.batch()
    theirs = attached.truth(model, batch, num_items=17)
    attach(model, {"name": "dft", "kernel": kernel})
    ours = attached.backward(model, {**batch, "num_items_in_batch": num_items})
    attached.assert_same(ours, theirs)


def test_micro_batches_of_different_lengths_add_up_to_the_whole_batch():
    model = tiny.llama()
    long, short = tiny.batch(masked=2), tiny.batch(masked=15, seed=1)
    count = sum(int((part["labels"][:, 1:] != -100).sum()) for part in (long, short))
    whole = {key: torch.cat([long[key], short[key]]) for key in long}
    theirs = attached.truth(model, whole)
    attach(model)
    model.zero_grad(set_to_none=True)
    loss = sum(model(**part, num_items_in_batch=count).loss for part in (long, short))
    loss.backward()
    attached.assert_same((loss.item(), tiny.gradients(model)), theirs)


@pytest.mark.parametrize("kernel", ["auto", "reference", "logits"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_batch_without_targets_gives_zero_and_a_zero_gradient_everywhere(kernel, tied):
    # DDP waits for the gradient of every parameter: without the zeros it hangs.
    model, batch = tiny.llama(tie_word_embeddings=tied), tiny.batch()
    attach(model, {"name": "dft", "kernel": kernel})
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    for _ in range(2):
        for extra in ({}, {"num_items_in_batch": 9}, {"num_items_in_batch": torch.tensor(0)}):
            loss, grads = attached.backward(model, {**nothing, **extra})
            assert loss == 0.0
            assert grads.keys() == {name for name, _ in model.named_parameters()}
            assert all(not grad.any() for grad in grads.values())


def test_the_first_batch_may_be_the_one_without_targets():
    model, batch = tiny.llama(), tiny.batch()
    theirs = attached.truth(model, batch)
    attachment = attach(model)
    attached.backward(model, {**batch, "labels": torch.full_like(batch["labels"], -100)})
    attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.path == "lean"


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant):
    model, batch = tiny.llama(), tiny.batch()
    theirs = attached.truth(model, batch)
    attached.checkpoint(model, reentrant)
    assert model.model.layers[0].gradient_checkpointing
    attach(model)
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)


def test_bf16_autocast_is_no_worse_than_the_models_own_logits():
    model, batch = tiny.llama(), tiny.batch()
    exact_loss, exact_grads = attached.truth(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        naive_loss, naive_grads = attached.truth(model, batch)
    attachment = attach(model)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss, grads = attached.backward(model, batch)
        assert abs(loss - exact_loss) <= abs(naive_loss - exact_loss) + 2e-2 * exact_loss
        assert attached.grad_gap(grads, exact_grads) <= 1.2 * attached.grad_gap(naive_grads, exact_grads)
    assert attachment.route.path == "lean"


def test_a_bfloat16_model_is_lean_and_close():
    model, batch = tiny.llama(), tiny.batch()
    exact = attached.truth(model, batch)[0]
    half = copy.deepcopy(model).bfloat16()
    naive = attached.truth(half, batch)[0]
    attachment = attach(half)
    loss, _ = attached.backward(half, batch)
    assert abs(loss - exact) <= abs(naive - exact) + 2e-2 * exact
    assert attachment.route.path == "lean"


def test_frozen_parameters_get_no_gradient():
    model, batch = tiny.llama(), tiny.batch()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    theirs = attached.truth(model, batch)
    attach(model)
    attached.assert_same(attached.backward(model, batch), theirs)


def test_a_label_outside_the_vocabulary_is_an_error():
    model, batch = tiny.llama(), tiny.batch()
    attach(model)
    batch["labels"][0, 9] = tiny.VOCAB
    with pytest.raises(LabelError, match="labels hold 128, but the model has 128 logits"):
        model(**batch)


def test_a_step_trains_as_the_true_gradient_does():
    ours, theirs, batch = tiny.llama(), tiny.llama(), tiny.batch()
    attach(ours)
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(3):
            optimizer.zero_grad()
            loss = ours(**batch).loss if model is ours else oracle.causal_loss(theirs, batch)
            loss.backward()
            optimizer.step()
    assert tiny.max_gap(tiny.weights(ours), tiny.weights(theirs)) < 1e-5


def test_labels_that_were_shifted_already_are_refused_and_the_next_batch_is_as_lean_as_ever():
    model, batch = tiny.llama(), tiny.batch()
    attachment = attach(model)
    with pytest.raises(LabelError, match="one label for each token is needed, unshifted"):
        model(input_ids=batch["input_ids"], labels=batch["labels"][:, 1:])
    model(**batch)
    assert attachment.route.path == "lean"
