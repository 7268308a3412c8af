"""Losses that compare with a frozen reference, on models: against float64 by hand, with the reference's own logits."""

from __future__ import annotations

import copy
import random
import warnings

import pytest
import torch
from support import attached, referred, tiny, waits
from support.referred import LAYERS, LOSSES, PARTS, adapted, base_logits, moved, own_logits
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from dft_plugin import attach

peft = pytest.importorskip("peft")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("part", PARTS)
def test_loss_and_gradients_equal_float64(loss, part):
    model, batch = adapted(**PARTS[part]), tiny.batch()
    written, formula = LOSSES[loss]
    theirs = referred.truth(model, batch, base_logits(model, batch), formula)
    attachment = attach(model, written)
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.path == "lean"


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kernel", ["chunked", "reference", "logits"])
def test_every_kernel_says_the_same(loss, kernel):
    model, batch = adapted(), tiny.batch()
    written, formula = LOSSES[loss]
    theirs = referred.truth(model, batch, base_logits(model, batch), formula)
    attachment = attach(model, {**written, "kernel": kernel})
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs)
    assert attachment.route.path == ("logits" if kernel == "logits" else "lean")


@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "granite"])
def test_logits_that_are_scaled_and_capped(model_type):
    changes = {
        "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0},
        "cohere": {},
        "granite": {"logits_scaling": 3.0},
    }
    model, batch = adapted(attached.build(model_type, **changes[model_type])), tiny.batch()
    for written, formula in LOSSES.values():
        theirs = referred.truth(model, batch, base_logits(model, batch), formula)
        attach(model, written)
        attached.assert_same(attached.backward(model, batch), theirs)
        model.get_base_model().forward.detach()


@pytest.mark.parametrize("loss", ["iw_sft", "asft"])
def test_a_packed_batch_is_the_references_batch_too(loss):
    model, batch = adapted(), tiny.batch(rows=2, masked=2)
    batch.pop("attention_mask")
    batch["position_ids"] = torch.cat([torch.arange(8), torch.arange(12)]).expand(2, -1)
    # With a cache transformers looks for no packed sequences.
    batch["use_cache"] = False
    sequence = torch.arange(40).ge(8).int() + torch.arange(40).ge(20).int() + torch.arange(40).ge(28).int()
    written, formula = LOSSES[loss]
    theirs = referred.truth(model, batch, base_logits(model, batch), formula, sequence.view(2, 20))
    attach(model, written)
    attached.assert_same(attached.backward(model, batch), theirs)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_step_in_four_micro_batches(loss):
    model, batch = adapted(), tiny.batch(rows=4)
    written, formula = LOSSES[loss]
    items = int((batch["labels"][:, 1:] != -100).sum())
    theirs = referred.truth(model, batch, base_logits(model, batch), formula)
    attach(model, written)
    model.zero_grad(set_to_none=True)
    losses = []
    for row in range(4):
        part = {key: value[row : row + 1] for key, value in batch.items()}
        done = model(**part, num_items_in_batch=items).loss
        done.backward()
        losses.append(float(done.detach()))
    attached.assert_same((sum(losses), tiny.gradients(model)), theirs)


@pytest.mark.parametrize("loss", ["prift", "asft"])
def test_a_router_and_checkpoints_are_as_without_a_reference(loss):
    mixtral = tiny.mixtral().train()
    model, batch = adapted(mixtral), tiny.batch()
    attached.checkpoint(mixtral, reentrant=True)
    written, formula = LOSSES[loss]
    theirs = referred.truth(model, batch, base_logits(model, batch), formula)
    auxiliary = model(**batch).aux_loss
    attach(model, written)
    ours = attached.backward(model, batch)
    assert ours[0] == pytest.approx(theirs[0] + 0.5 * auxiliary.item(), rel=1e-5)


class TestNothingIsLeftBehind:
    def state(self, model):
        return {
            "trained": [name for name, p in model.named_parameters() if p.requires_grad],
            "training": [name for name, module in model.named_modules() if module.training],
            "adapters": [m._disable_adapters for m in model.modules() if hasattr(m, "_disable_adapters")],
            "modules": [name for name, _ in model.named_modules()],
            "buffers": [(name, id(buffer), buffer.tolist()) for name, buffer in model.named_buffers()],
        }

    @pytest.mark.parametrize("reference", ["base", "start"])
    def test_on_the_model(self, reference):
        model, batch = adapted(), tiny.batch()
        # What a user froze, stays so.
        frozen = next(name for name, p in model.named_parameters() if p.requires_grad)
        model.get_parameter(frozen).requires_grad_(False)
        model.get_base_model().lm_head.eval()
        before = self.state(model)
        attachment = attach(model, {"name": "asft", "reference": reference})
        attached.backward(model, batch)
        assert self.state(model) == before
        assert attachment.calls == 1

    def test_nor_are_random_numbers_drawn(self):
        llama = tiny.llama(attention_dropout=0.3).train()

        def draw(*_):
            """As a layer that draws in any mode."""
            torch.rand(1)
            random.random()

        llama.model.register_forward_pre_hook(draw)
        model, batch = adapted(llama, lora_dropout=0.3), tiny.batch()
        results = {}
        for loss in ("dft", {"name": "asft", "strength": 0.0}):
            attach(model, loss)
            torch.manual_seed(5)
            random.seed(5)
            for _ in range(2):
                results[str(loss)] = *attached.backward(model, batch), torch.rand(1), random.random()
        ours, theirs = results.values()
        assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
        assert tiny.max_gap(ours[1], theirs[1]) < 1e-7
        assert ours[2:] == theirs[2:]

    def test_a_buffer_that_a_pass_writes_into_is_put_back(self):
        llama, batch = tiny.llama().train(), tiny.batch()
        llama.register_buffer("passes", torch.zeros(()))
        llama.model.register_forward_pre_hook(lambda *_: llama.passes.add_(1) and None)
        model = adapted(llama)
        attach(model, "dft")
        attached.backward(model, batch)
        once = float(llama.passes)
        llama.passes.zero_()
        attach(model, "prift")
        attached.backward(model, batch)
        assert float(llama.passes) == once


def test_a_forward_that_writes_into_its_inputs_gets_them_as_they_were():
    llama = tiny.llama().train()

    def write(_module, _args, kwargs):
        kwargs["input_ids"].add_(1).remainder_(tiny.VOCAB)

    llama.model.register_forward_pre_hook(write, with_kwargs=True)
    model, batch = adapted(llama), tiny.batch()
    theirs = referred.truth(model, copy.deepcopy(batch), base_logits(model, copy.deepcopy(batch)), LOSSES["asft"][1])
    attach(model, LOSSES["asft"][0])
    attached.backward(model, copy.deepcopy(batch))
    attached.assert_same(attached.backward(model, copy.deepcopy(batch)), theirs)


def test_the_reference_has_no_dropout():
    llama = tiny.llama(attention_dropout=0.3).train()
    model, batch = adapted(llama, lora_dropout=0.5), tiny.batch()
    written, formula = LOSSES["prift"]
    ref_logits = base_logits(model, batch)
    torch.manual_seed(7)
    attach(model, written)
    ours = attached.backward(model, batch)
    model.get_base_model().forward.detach()
    torch.manual_seed(7)
    attached.assert_same(ours, referred.truth(model, batch, ref_logits, formula))


def test_nor_has_the_adapter_on_the_head_that_the_run_began_with():
    model, batch = adapted(target_modules=["lm_head"], lora_dropout=0.5), tiny.batch()
    kept = batch["labels"][:, 1:] != -100
    logits = own_logits(model.eval(), batch)[:, :-1][kept]
    p = logits.double().softmax(1).gather(1, batch["labels"][:, 1:][kept][:, None])
    attachment = attach(moved(model, scale=0.0), {"name": "prift", "reference": "start"})
    attached.backward(model, batch)
    assert attachment.drain(training=True).as_logs()["dft/mean_weight"] == pytest.approx(p.mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("want_logits", [True, False])
def test_an_evaluation_has_the_reference_too(loss, want_logits):
    model, batch = adapted().eval(), tiny.batch()
    written, formula = LOSSES[loss]
    theirs = referred.truth(model, batch, base_logits(model, batch), formula)
    attachment = attach(model, written)
    with torch.no_grad(), attachment.answering(want_logits=want_logits):
        output = model(**batch)
    assert float(output.loss) == pytest.approx(theirs[0], rel=1e-6)
    assert (output.logits is not None) == want_logits


def test_a_loss_attached_before_the_adapters_takes_their_base():
    base, batch = tiny.llama().train(), tiny.batch()
    attach(base, "prift")
    model = adapted(base)
    ours = attached.backward(model, batch)
    base.forward.detach()
    _, formula = LOSSES["prift"]
    attached.assert_same(ours, referred.truth(model, batch, base_logits(model, batch), formula))


# Not by mass: rounding takes it over its threshold.
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "prift, mass"])
def test_bfloat16_under_autocast(loss):
    model, batch = adapted(target_modules=[*LAYERS, "lm_head"]), tiny.batch()
    written, formula = LOSSES[loss]
    theirs = referred.truth(model, batch, base_logits(model, batch), formula)
    attach(model, written)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = attached.backward(model, batch)
    assert ours[0] == pytest.approx(theirs[0], rel=0.05)
    assert attached.grad_gap(ours[1], theirs[1]) < 0.1


@pytest.mark.parametrize("kernel", ["auto", "logits"])
def test_the_adapters_that_the_run_began_with_are_not_taken_from_autocasts_cache_nor_left_in_it(kernel):
    model, batch, found = adapted(target_modules=[*LAYERS, "lm_head"]), tiny.batch(), []
    attach(model, {"name": "asft", "strength": 0.5, "reference": "start", "kernel": kernel})
    attached.noisy(model)
    for cached in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
            found.append(attached.backward(model, batch))
    attached.assert_same(*reversed(found))
    assert found[0][0] > 0.05, "there is nothing between the model and what it was"


def test_autocast_rounds_model_and_reference_alike():
    model, batch = peft.get_peft_model(tiny.llama().train(), peft.LoraConfig(target_modules=LAYERS)), tiny.batch()
    attachment = attach(model, "asft")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch)
    assert abs(attachment.drain(training=True).as_logs()["dft/kl"]) < 1e-7


def test_a_head_with_a_hook_is_called_for_the_reference_too():
    model, batch = adapted(), tiny.batch()
    head = model.get_base_model().lm_head
    head.register_forward_hook(lambda _module, _args, out: 0.5 * out)
    written, formula = LOSSES["asft"]
    theirs = referred.truth(model, batch, base_logits(model, batch), formula)
    attachment = attach(model, written)
    attached.assert_same(attached.backward(model, batch), theirs)
    assert isinstance(head, nn.Linear)
    assert attachment.route.why_not_lean == "the head has hooks, which see its logits"


@pytest.mark.parametrize("skip", [["lm_head"], ["q_proj"]], ids=["head whole", "head in 4 bits"])
@pytest.mark.parametrize("loss", ["prift", "asft"])
def test_qlora_is_compared_with_its_quantised_base(loss, skip, tmp_path):
    pytest.importorskip("bitsandbytes")
    # bitsandbytes quantises blocks of 64 numbers.
    tiny.llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=skip)
    with warnings.catch_warnings():
        # Loading warns of what it finds missing on a machine without a GPU.
        warnings.simplefilter("ignore")
        base = LlamaForCausalLM.from_pretrained(
            tmp_path, quantization_config=settings, device_map={"": "cpu"}, dtype=torch.float32
        )
    model, batch = adapted(base, target_modules=["v_proj"]), tiny.batch()
    written, formula = LOSSES[loss]
    asked = {key: value for key, value in batch.items() if key != "labels"}
    # With gradients, since without any bitsandbytes has another kernel.
    with model.disable_adapter():
        ref_logits = model(**asked, use_cache=False).logits.detach()
    moved(model, scale=0.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name)
    theirs = referred.truth(model, batch, ref_logits, formula)
    attach(model, written)
    for _ in range(2):
        attached.assert_same(attached.backward(model, batch), theirs, loss_gap=1e-5, gradient_gap=1e-3)


# Not by sequences: those are read from the batch, whether there is a reference or not.
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "iw_sft"])
@pytest.mark.parametrize("reference", ["base", "start"])
def test_a_reference_waits_where_the_models_forward_does_and_nowhere_else(loss, reference):
    def watched(run):
        with waits.watching(torch.zeros(1)) as found:
            run()
        return found.seen, found.fetched, found.read

    model, batch = adapted(target_modules=[*LAYERS, "lm_head"]), tiny.batch()
    asked = {key: value for key, value in batch.items() if key != "labels"}
    once, _, _ = watched(lambda: model(**asked))
    found = []
    for written in ("dft", {**LOSSES[loss][0], "reference": reference}):
        attach(model, written)
        attached.backward(model, tiny.batch(masked=3, seed=1))
        found.append(watched(lambda: model(**batch, num_items_in_batch=48).loss.backward()))
    (plain, *sent), (ours, *ours_sent) = found
    assert ours_sent == sent
    assert sum(ours.values()) == sum(plain.values()) + sum(once.values())
