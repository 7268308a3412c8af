"""PEFT around, inside and on the head: each is read right, or called."""

from __future__ import annotations

import warnings

import pytest
import torch
from support import attached, oracle, tiny

from dft_plugin import Attachment, attach
from dft_plugin.errors import UnsupportedModelError

peft = pytest.importorskip("peft")

LAYERS = ["q_proj", "v_proj"]


def adapted(model=None, *, noise=0.1, **lora):
    """A LoRA model whose B matrices are not zero: a zero adapter hides that it is not applied."""
    model = tiny.llama().train() if model is None else model
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **lora)
    with warnings.catch_warnings():
        # peft warns of adapters on tied embeddings, and of heads that it saves.
        warnings.simplefilter("ignore")
        adapted_model = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    trained = [p for p in adapted_model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter) * noise)
    return adapted_model.train()


CASES = {
    "layers": {"target_modules": LAYERS},
    "layers and a saved head": {"target_modules": LAYERS, "modules_to_save": ["lm_head"]},
    "saved head and embeddings": {"target_modules": LAYERS, "modules_to_save": ["lm_head", "embed_tokens"]},
    "head": {"target_modules": [*LAYERS, "lm_head"], "lora_dropout": 0.0},
    "head, rank-stabilised": {"target_modules": ["lm_head"], "use_rslora": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", ["chunked", "reference", "logits"])
def test_loss_and_gradients_equal_float64(case, kernel):
    model, batch = adapted(**CASES[case]), tiny.batch()
    theirs = attached.truth(model, batch)
    attachment = attach(model, {"name": "dft", "kernel": kernel})
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.path == ("logits" if kernel == "logits" else "lean")
    assert attachment.route.why_not_lean == ("asked for" if kernel == "logits" else None)


def test_a_tied_head_with_lora_on_the_layers():
    model, batch = adapted(tiny.llama(tie_word_embeddings=True).train(), target_modules=LAYERS), tiny.batch()
    theirs = attached.truth(model, batch)
    attach(model)
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)


def test_attaching_before_the_adapters_are_added_is_the_same():
    base, batch = tiny.llama().train(), tiny.batch()
    attach(base)
    model = adapted(base, target_modules=[*LAYERS, "lm_head"])
    loss, grads = attached.backward(model, batch)
    base.forward.detach()
    attached.assert_same((loss, grads), attached.truth(model, batch))


def two_adapters():
    model = adapted(target_modules=["lm_head", "q_proj"])
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["lm_head", "v_proj"]))
    model.base_model.set_adapter(["default", "second"])
    torch.manual_seed(2)
    return attached.noisy(model, 0.1)


def test_two_adapters_on_the_head_are_both_applied():
    model, batch = two_adapters(), tiny.batch()
    theirs = attached.truth(model, batch)
    attachment = attach(model)
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.why_not_lean is None
    assert any("lm_head.lora_A.second" in name for name in theirs[1])


def test_switching_adapters_after_the_first_batch_is_followed():
    model, batch = two_adapters(), tiny.batch()
    attachment = attach(model)
    attached.backward(model, batch)
    for active in ("second", "default", ["default", "second"]):
        model.base_model.set_adapter(active)
        ours = attached.backward(model, batch)
        attachment.detach()
        attached.assert_same(ours, attached.truth(model, batch))
        attachment = attach(model)
        attached.backward(model, batch)


@pytest.mark.parametrize("case", CASES)
def test_disabled_adapters_are_not_applied(case):
    model, batch = adapted(**CASES[case]), tiny.batch()
    with torch.no_grad():
        with model.disable_adapter():
            expected = float(oracle.causal_loss(model, batch))
        enabled = float(oracle.causal_loss(model, batch))
        attach(model)
        for _ in range(2):
            with model.disable_adapter():
                assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-6)
            assert model(**batch).loss.item() == pytest.approx(enabled, rel=1e-6)
    assert expected != pytest.approx(enabled, rel=1e-3)


@pytest.mark.parametrize("first", ["merged", "plain"])
def test_merging_into_the_head_applies_the_adapter_once(first):
    model, batch = adapted(target_modules=[*LAYERS, "lm_head"]), tiny.batch()
    with torch.no_grad():
        expected = float(oracle.causal_loss(model, batch))
        attach(model)
        if first == "plain":
            model(**batch)
        model.merge_adapter()
        assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-5)
        with model.disable_adapter():
            # Unmerges: the base model alone.
            base = model(**batch).loss.item()
    assert base != pytest.approx(expected, rel=1e-3)


def test_merge_and_unload_leaves_an_attached_model():
    model, batch = adapted(target_modules=[*LAYERS, "lm_head"]), tiny.batch()
    expected = attached.truth(model, batch)[0]
    attach(model)
    merged = model.merge_and_unload()
    assert isinstance(merged.forward, Attachment)
    assert merged(**batch).loss.item() == pytest.approx(expected, rel=1e-5)
    merged.forward.detach()
    merged.requires_grad_(True)
    theirs = attached.truth(merged, batch)
    attach(merged)
    attached.assert_same(attached.backward(merged, batch), theirs)


def test_dropout_on_the_head_falls_on_its_input_as_in_the_adapter():
    model, batch = adapted(target_modules=["lm_head"], lora_dropout=0.5), tiny.batch()
    # Every position is scored, so that both draw the same mask.
    batch["labels"] = torch.full_like(batch["labels"], 7)
    del batch["attention_mask"]
    length = batch["input_ids"].shape[1]
    shifted = {"input_ids": batch["input_ids"], "shift_labels": torch.full_like(batch["input_ids"], 7)}
    assert length * 3 < 64, "one chunk"
    torch.manual_seed(3)
    theirs = attached.truth(model, shifted)
    attachment = attach(model)
    attached.backward(model, shifted)
    torch.manual_seed(3)
    attached.assert_same(attached.backward(model, shifted), theirs)
    assert attachment.route.path == "lean"


OPAQUE = {
    "DoRA": {"target_modules": ["lm_head", "q_proj"], "use_dora": True},
    "LoRA with a bias": {"target_modules": ["lm_head"], "lora_bias": True},
}


@pytest.mark.parametrize("case", OPAQUE)
@pytest.mark.parametrize("scratch_mb", [1, 256])
def test_other_adapters_on_the_head_are_called(case, scratch_mb):
    if case == "LoRA with a bias":
        base = tiny.llama(attention_bias=True).train()
        base.lm_head = torch.nn.Linear(32, tiny.VOCAB, bias=True)
        model = adapted(base, **OPAQUE[case])
    else:
        model = adapted(**OPAQUE[case])
    # More tokens than a chunk has.
    batch = tiny.batch(rows=4, length=60)
    theirs = attached.truth(model, batch)
    attachment = attach(model, {"name": "dft", "scratch_mb": scratch_mb})
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.path == "lean"
    assert attachment.route.why_not_lean.startswith("the head has ")


def test_an_adapter_that_is_no_lora_is_called():
    model = peft.get_peft_model(
        tiny.llama().train(), peft.LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head", "q_proj"])
    )
    attached.noisy(model, 0.1)
    batch = tiny.batch()
    theirs = attached.truth(model, batch)
    attachment = attach(model)
    attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.why_not_lean == "the head has a loha adapter"


def test_virtual_tokens_of_prompt_tuning_are_not_scored():
    model = peft.get_peft_model(
        tiny.llama().train(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )
    batch = tiny.batch()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits[:, 4:]
    expected = oracle.loss(logits[:, :-1], batch["labels"][:, 1:])
    model.zero_grad()
    expected.backward()
    theirs = expected.item(), tiny.gradients(model)
    attachment = attach(model)
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.path == "lean"


def test_lora_under_bf16_autocast_keeps_the_trained_head_close_to_float32():
    model, batch = adapted(target_modules=[*LAYERS, "lm_head"]), tiny.batch()
    exact_loss, exact_grads = attached.truth(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        naive_loss, naive_grads = attached.truth(model, batch)
    attach(model)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss, grads = attached.backward(model, batch)
        assert abs(loss - exact_loss) <= abs(naive_loss - exact_loss) + 2e-2 * exact_loss
        assert attached.grad_gap(grads, exact_grads) <= 1.2 * attached.grad_gap(naive_grads, exact_grads)


def test_a_saved_adapter_is_the_same_file(tmp_path):
    model = adapted(target_modules=[*LAYERS, "lm_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "stock")
        attach(model)
        attached.backward(model, tiny.batch())
        model.save_pretrained(tmp_path / "ours")
    for path in (tmp_path / "stock").iterdir():
        assert path.read_bytes() == (tmp_path / "ours" / path.name).read_bytes()


def test_a_wrapper_that_keeps_the_forward_of_the_model_inside_is_refused_by_name():
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2)
    model = peft.get_peft_model(tiny.llama(), config).train()
    with pytest.raises(UnsupportedModelError, match="AdaptionPromptModel keeps the forward that Llama"):
        attach(model)
    base = tiny.llama().train()
    attachment = attach(base)
    wrapped = peft.get_peft_model(base, config).train()
    theirs = attached.truth(peft.get_peft_model(tiny.llama().train(), config).train(), tiny.batch())
    assert attached.backward(wrapped, tiny.batch())[0] == pytest.approx(theirs[0], rel=1e-6)
    assert attachment.calls == 1, "the remedy that the error names"
