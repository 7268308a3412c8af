"""A model on several devices, offloaded weights, heads in fp8, CUDA graphs: each works, or is refused by name.

What needs a second device runs between a CPU and a GPU (`pytest -m gpu`), and here between the CPU and itself.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers
from support import attached, tiny
from torch import nn

from dft_plugin import attach
from dft_plugin.core.loss import LossResult
from dft_plugin.core.targets import select
from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf.called import CalledHead
from dft_plugin.hf.entry import enter
from dft_plugin.hf.head import find_door
from dft_plugin.kernels import Head, reference
from dft_plugin.objectives import DFT, Targets

GPU = pytest.param("cuda:0", marks=pytest.mark.gpu)
DEVICES = ["cpu", GPU]
PAIRS = [
    ("cpu", "cpu"),
    *(pytest.param(*pair, marks=pytest.mark.gpu) for pair in (("cpu", "cuda:0"), ("cuda:0", "cpu"))),
]

GAPS = (1e-5, 1e-4) if torch.cuda.is_available() else (attached.LOSS_GAP, attached.GRAD_GAP)
"""Two devices add in different orders, in float32."""


def runs_on(module, device, *, io_same_device=False):
    """Put a module on a device, with the hook by which accelerate moves what it is given there."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    add_hook_to_module(
        module.to(device), AlignDevicesHook(execution_device=torch.device(device), io_same_device=io_same_device)
    )


def on_cpu(answer):
    loss, grads = answer
    return loss, {name: grad.cpu() for name, grad in grads.items()}


def moved(batch, device):
    return {name: tensor.to(device) for name, tensor in batch.items()}


def assert_trains_as_on_one_device(model, batch, theirs, *, attachment=None):
    attachment = attachment or attach(model)
    for _ in range(2):
        attached.assert_same(on_cpu(attached.backward(model, batch)), theirs, *GAPS)
    assert attachment.route.path == "lean"
    with torch.no_grad():
        # In eval mode the logits are wanted, too.
        assert model.eval()(**batch).loss.item() == pytest.approx(theirs[0], rel=1e-5)
    assert attachment.drain(training=True).as_logs()
    model.train()


@pytest.mark.parametrize(("body", "head"), PAIRS)
@pytest.mark.parametrize("back", [True, False])
def test_a_head_on_another_device_than_hidden_states_and_labels(body, head, back):
    model, batch = tiny.llama().train(), tiny.batch()
    theirs = attached.truth(model, batch)
    runs_on(model.model, body)
    runs_on(model.lm_head, head, io_same_device=back)
    for labels in (body, head):
        attachment = attach(model)
        assert_trains_as_on_one_device(model, {**batch, "labels": batch["labels"].to(labels)}, theirs)
        attachment.detach()


def test_the_loss_stays_where_the_head_is_and_the_upstream_factor_goes_there():
    # On `meta`, a second device that every machine has; nothing on it has a value.
    model = tiny.llama().train()
    runs_on(model.lm_head, "meta")
    arrived = []

    def score(hidden_TD, project):
        arrived.append(hidden_TD.device.type)
        head, ids = Head(model.lm_head.weight), Targets(torch.arange(6, device=hidden_TD.device))
        scored = reference(hidden_TD, head, ids, DFT(), needs=frozenset(), scratch_bytes=None)
        return LossResult(scored, ids, select(torch.arange(6)), DFT())

    loss = enter(find_door(model.lm_head), score, torch.randn(6, 32)).loss_sum
    assert arrived == [loss.device.type] == ["meta"]
    loss.backward()
    assert model.lm_head.weight.grad.device.type == "meta"
    assert "forward" in model.lm_head.__dict__, "accelerate's hook is back in its place"


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("on_meta", "named"),
    [
        ({"model", "labels", "input_ids"}, "the model's weights and `input_ids` and `labels`"),
        ({"model", "input_ids"}, "the model's weights and `input_ids`"),
        ({"model"}, "the model's weights"),
        ({"labels"}, "`labels`"),
    ],
)
def test_what_has_no_numbers_is_refused_by_name(on_meta, named, train):
    model, batch = tiny.llama().train(train), tiny.batch()
    batch = {name: tensor.to("meta") if name in on_meta else tensor for name, tensor in batch.items()}
    if "model" in on_meta:
        model.to("meta")
    attach(model)
    with pytest.raises(UnsupportedModelError) as refused:
        model(**batch)
    assert str(refused.value).startswith(f"LlamaForCausalLM: {named}: on `meta`, where tensors have shapes and")
    if transformers.__version__.startswith("4."):
        # Its rotary embedding asks for autocast there, and torch refuses.
        return
    # Without labels there is nothing to score.
    assert model.to("meta")(input_ids=batch["input_ids"].to("meta")).logits.is_meta


@pytest.mark.parametrize(("first", "last"), PAIRS)
def test_a_tied_head_is_where_the_embeddings_are(first, last):
    model, batch = tiny.llama(tie_word_embeddings=True).train(), tiny.batch()
    theirs = attached.truth(model, batch)
    runs_on(model.model.embed_tokens, first)
    for layer in model.model.layers:
        runs_on(layer, last)
    runs_on(model.model.norm, last)
    model.model.rotary_emb.to(first)
    runs_on(model.lm_head, first)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert_trains_as_on_one_device(model, moved(batch, first), theirs)


@pytest.mark.parametrize("main", DEVICES)
def test_a_model_that_accelerate_has_dispatched(main):
    from accelerate import dispatch_model

    model, batch = tiny.llama().train(), tiny.batch()
    # Those on the CPU run on the main device, from copies of their weights: they are frozen, as such ones must be.
    model.model.layers[0].requires_grad_(False)
    theirs = attached.truth(model, batch)
    where = 0 if main != "cpu" else "cpu"
    places = {"model.embed_tokens": where, "model.layers.0": "cpu", "model.layers.1": where, "model.norm": where}
    dispatch_model(model, {**places, "model.rotary_emb": where, "lm_head": where}, main_device=where, force_hooks=True)
    assert_trains_as_on_one_device(model, batch, theirs)


def offloaded(model, how, main, folder):
    from accelerate import cpu_offload, disk_offload

    device = torch.device(main)
    if how == "disk":
        disk_offload(model, folder, execution_device=device)
    else:
        pin = how == "pinned" and main != "cpu"
        state = {name: value.cpu().pin_memory() if pin else value for name, value in model.state_dict().items()}
        cpu_offload(model, execution_device=device, state_dict=state)


@pytest.mark.parametrize("main", DEVICES)
@pytest.mark.parametrize("how", ["memory", "pinned", "disk"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_are_elsewhere_between_calls(tied, how, main, tmp_path):
    model, batch = tiny.llama(tie_word_embeddings=tied).train().requires_grad_(False), tiny.batch()
    embeds = torch.randn(*batch["labels"].shape, model.config.hidden_size)

    def gradient(loss_of, device):
        leaf = embeds.to(device).detach().requires_grad_()
        loss = loss_of(leaf)
        loss.backward()
        return loss.item(), {"embeds": leaf.grad.cpu()}

    mask, labels = batch["attention_mask"], batch["labels"]
    attachment = attach(model)
    theirs = gradient(lambda leaf: model(inputs_embeds=leaf, attention_mask=mask, labels=labels).loss, "cpu")
    attachment.detach()
    offloaded(model, how, main, tmp_path)
    assert model.lm_head.weight.is_meta
    attachment = attach(model)
    for _ in range(2):
        mine = gradient(lambda leaf: model(inputs_embeds=leaf, attention_mask=mask.to(main), labels=labels).loss, main)
        attached.assert_same(mine, theirs, *GAPS)
    assert attachment.route.path == "lean"
    assert attachment.route.why_not_lean is None
    assert model.lm_head.weight.is_meta


@pytest.mark.parametrize("main", DEVICES)
def test_an_offloaded_head_below_an_adapter(main):
    import peft
    from accelerate import cpu_offload

    config = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    model, batch = peft.get_peft_model(tiny.llama(), config).train(), tiny.batch()
    theirs = attached.truth(model, batch)
    model.to(main)
    head = model.base_model.model.lm_head
    cpu_offload(head.base_layer, execution_device=torch.device(main))
    attachment = attach(model)
    attached.assert_same(on_cpu(attached.backward(model, moved(batch, main))), theirs, *GAPS)
    # Its weight comes only when the adapter's own forward asks for it.
    assert attachment.route.why_not_lean == "the head's weight is not here as a whole"


def test_a_trained_head_that_is_offloaded_is_refused_since_its_gradient_would_be_lost():
    from accelerate import cpu_offload

    model, batch = tiny.llama().train(), tiny.batch()
    expected = attached.truth(model, batch)[0]
    cpu_offload(model.lm_head, execution_device=torch.device("cpu"))
    attach(model)
    with pytest.raises(UnsupportedModelError) as refused:
        model(**batch)
    assert str(refused.value) == (
        "the head (Linear) is offloaded by accelerate and trained: each pass works on a copy of its weight, and the "
        "gradient is lost with the copy, whatever the loss. Freeze it (requires_grad_(False)), or keep it on a "
        "device: in device_map, give the head and what it is tied to one of the GPUs."
    )
    with torch.no_grad():
        assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-6)
    model.lm_head.weight.requires_grad_(False)
    assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-6)


def test_so_is_an_offloaded_adapter_of_it():
    import peft
    from accelerate import cpu_offload

    model = peft.get_peft_model(tiny.llama(), peft.LoraConfig(r=4, target_modules=["lm_head"])).train()
    cpu_offload(model.base_model.model.lm_head, execution_device=torch.device("cpu"))
    attach(model)
    with pytest.raises(UnsupportedModelError, match=r"its part lora_A\.default\) is offloaded by accelerate"):
        model(**tiny.batch())


class _Float8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TD, weight_VD, scale):
        ctx.save_for_backward(weight_VD, scale)
        ctx.dtype = hidden_TD.dtype
        if hidden_TD.shape[0] % 16:
            # As cuBLAS has it; a CPU takes any.
            raise RuntimeError(f"mat1 has {hidden_TD.shape[0]} rows, no multiple of 16")
        one = torch.ones((), device=scale.device)
        return torch._scaled_mm(
            hidden_TD.to(torch.float8_e4m3fn), weight_VD.t(), scale_a=one, scale_b=scale, out_dtype=torch.bfloat16
        )

    @staticmethod
    def backward(ctx, grad_TV):
        weight_VD, scale = ctx.saved_tensors
        return (grad_TV.float() @ (weight_VD.float() * scale)).to(ctx.dtype), None, None


class Float8Linear(nn.Module):
    """A frozen head in fp8: a real product in it, with one scale for the weight."""

    def __init__(self, linear):
        super().__init__()
        self.out_features = linear.out_features
        scale = linear.weight.detach().abs().max() / torch.finfo(torch.float8_e4m3fn).max
        self.weight = nn.Parameter((linear.weight.detach() / scale).to(torch.float8_e4m3fn), requires_grad=False)
        self.register_buffer("scale", scale.float())

    def forward(self, hidden):
        flat = hidden.reshape(-1, hidden.shape[-1])
        return _Float8Product.apply(flat, self.weight, self.scale).view(*hidden.shape[:-1], self.out_features)


@pytest.mark.parametrize("main", DEVICES)
def test_a_head_in_fp8_is_called_with_multiples_of_16_rows(main):
    model, batch = tiny.llama().train(), tiny.batch(rows=4)
    model.lm_head = Float8Linear(model.lm_head)
    model.to(main)
    batch = moved(batch, main)
    assert CalledHead(find_door(model.lm_head)).row_multiple == 16
    theirs = attached.truth(model, batch)
    attachment = attach(model)
    # bfloat16 logits and fp8 hidden states are the same in both.
    attached.assert_same(attached.backward(model, batch), theirs, 1e-5, 2e-2)
    assert attachment.route.path == "lean"
    assert attachment.route.why_not_lean == "the head is a Float8Linear"


@pytest.mark.gpu
def test_a_captured_graph_is_refused_before_anything_reads_the_device():
    model, batch = tiny.llama().train().to("cuda"), moved(tiny.batch(), "cuda")
    theirs = attached.truth(model, batch)
    attachment = attach(model)
    attached.assert_same(attached.backward(model, batch), theirs, *GAPS)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        # Of an empty graph torch warns.
        batch["input_ids"] + 1
        with pytest.raises(UnsupportedModelError, match="a CUDA graph is being captured"):
            model(**batch)
    attached.assert_same(attached.backward(model, batch), theirs, *GAPS)
    assert attachment.calls == 2


@pytest.mark.gpu
def test_a_model_compiled_into_cuda_graphs_gives_the_same_loss_and_gradients():
    with warnings.catch_warnings():
        # torch warns of its own deprecated internals while it compiles, and of float32 that is not TF32.
        warnings.simplefilter("ignore")
        torch.compiler.reset()
        model, batch = tiny.llama(num_hidden_layers=1).train(), tiny.batch()
        theirs = attached.truth(model, batch)
        attach(model.to("cuda"))
        compiled = torch.compile(model, mode="reduce-overhead")
        for _ in range(4):
            loss, grads = on_cpu(attached.backward(compiled, moved(batch, "cuda")))
            plain = {name.removeprefix("_orig_mod."): grad for name, grad in grads.items()}
            attached.assert_same((loss, plain), theirs, *GAPS)
        assert model.forward.route.path == "lean"
        torch.compiler.reset()


@pytest.mark.gpu
def test_a_copy_on_another_device_has_its_own_numbers():
    model, batch = tiny.llama().train(), tiny.batch()
    theirs = attached.truth(model, batch)
    attach(model)
    there = copy.deepcopy(model).to("cuda")
    for one, device in ((model, "cpu"), (there, "cuda"), (model, "cpu")):
        attached.assert_same(on_cpu(attached.backward(one, moved(batch, device))), theirs, *GAPS)
