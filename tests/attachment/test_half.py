"""A model in float16 or bfloat16 under a loss scale: as near to float64 as the textbook on its own logits."""

from __future__ import annotations

import copy

import pytest
import torch
from support import attached, tiny
from torch.nn import functional as F

from dft_plugin import attach

SCALE = 65536.0


def textbook(model, batch):
    """DFT as a host would write it on the model's logits, left to autograd."""
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    nll = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    return ((-nll.detach()).exp() * nll).sum() / (labels != -100).sum()


def plain(model):
    return model


def with_hook(model):
    # It sees the logits, so the head is called.
    model.lm_head.register_forward_hook(lambda module, args, output: output * 1)
    return model


def with_adapter(model, **options):
    import peft

    config = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False, **options)
    # peft would make them float32.
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def with_dora(model):
    return with_adapter(model, use_dora=True)


WAYS = {"read": plain, "called": with_hook, "LoRA on the head": with_adapter, "DoRA on the head": with_dora}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_are_as_near_to_the_truth_as_those_of_the_models_logits(dtype, way):
    model, batch = WAYS[way](tiny.llama().to(dtype)).train(), tiny.batch()
    exact = copy.deepcopy(model).double()
    _, truths = attached.truth(exact, batch)
    (textbook(model, batch) * SCALE).backward()
    theirs = {name: grad.double() / SCALE for name, grad in tiny.gradients(model).items()}
    model.zero_grad()
    attachment = attach(model)
    (model(**batch).loss * SCALE).backward()
    ours = {name: grad.double() / SCALE for name, grad in tiny.gradients(model).items()}
    assert attachment.route.path == "lean"
    assert (attachment.route.why_not_lean is None) == (way in ("read", "LoRA on the head"))
    # Those behind the head, too: what it hands on is what they get.
    for name, truth in truths.items():
        of_one, of_other = (float((found[name] - truth).norm() / truth.norm()) for found in (ours, theirs))
        assert of_one <= 1.25 * of_other + 2 * torch.finfo(dtype).eps, name
