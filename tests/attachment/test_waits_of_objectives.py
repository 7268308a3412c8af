"""No objective waits for the device: nothing of what it knows of a token takes more than the labels' one copy."""

from __future__ import annotations

import pytest
import torch
from support import attached, tiny, waits
from support.stepping import watched
from support.waits import Case

from dft_plugin import attach
from dft_plugin.objectives import FAMILY


def lora(make=tiny.llama):
    peft = pytest.importorskip("peft")
    return attached.noisy(peft.get_peft_model(make(), peft.LoraConfig(r=4, target_modules=["q_proj"])))


def behind(kernel):
    """A model whose head the kernel is for: `blocked` hands a trained one on."""
    return lora if kernel == "blocked" else tiny.llama


def in_two(batch):
    """Positions that begin again in the middle of each row."""
    positions_S = torch.arange(batch["labels"].shape[1])
    return {"position_ids": torch.where(positions_S < 7, positions_S, positions_S - 7).expand_as(batch["labels"])}


def numbered(batch):
    """An attention mask that numbers two sequences of each row."""
    return {"attention_mask": batch["attention_mask"] + (torch.arange(batch["labels"].shape[1]) >= 7)}


KERNELS = ("chunked", "blocked", "logits")
OF_DATA = {"prift": ("ref_logp",), "iw_sft": ("ref_logp",), "psft": ("old_logp",)}
WITH_REFERENCE = {
    "prift": {},
    "prift by mass": {"name": "prift", "by": "mass"},
    "iw_sft": {},
    "asft": {},
    "gift": {},
}
AROUND = {
    "always_learn": {"name": "dft", "always_learn": [3, 4, 5, 9]},
    "weights": {"name": "dft", "weights": {"column": "ratio", "tokens": {7: 2.0, 11: 0.5}}},
    "a ramp": {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 8}},
    "a first loss": {"name": "dft", "first": {"name": "nll", "for": 2}},
    "more statistics": {"name": "dft", "log": ["top1", "entropy"]},
}


def check(case, passes=1):
    for ours, stock in zip(watched(case, case.loss), watched(case), strict=True):
        own = waits.Counter({place: passes * times for place, times in stock.seen.items()})
        assert ours.seen - own == waits.Counter()
        assert (ours.fetched, ours.read) == (case.fetched, case.read)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", [one.name for one in FAMILY if one.name not in ("asft", "gift")])
def test_no_objective_of_the_family_waits(name, kernel):
    columns = OF_DATA.get(name, ())
    reference = {"reference": "columns"} if "ref_logp" in columns else {}
    splits = name != "thresholded"
    check(Case(behind(kernel), {"name": name, "kernel": kernel, **reference}, columns=columns, splits=splits))


@pytest.mark.parametrize("given", [in_two, numbered])
def test_nor_does_one_that_asks_for_sequences(given):
    loss = {"name": "iw_sft", "reference": "columns", "kernel": "chunked"}
    check(Case(tiny.llama, loss, columns=("ref_logp",), given=given))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("around", AROUND)
def test_nor_does_what_is_around_one(around, kernel):
    columns = ("ratio",) if around == "weights" else ()
    check(Case(behind(kernel), {**AROUND[around], "kernel": kernel}, columns=columns))


@pytest.mark.skipif(not waits.SHOWN, reason="this torch does not show what an operation has saved")
def test_nor_does_another_model_that_scales_its_logits():
    check(Case(lambda: lora(waits.capped), {"name": "prift", "reference": "copy", "kernel": "chunked"}), passes=2)


def test_a_copy_runs_without_a_graph_but_for_the_probe():
    # As gradient checkpoints with adapters want it: what comes out of the embeddings asks for gradients.
    model = lora()
    model.enable_input_require_grads()
    attachment = attach(model, {"name": "prift", "reference": "copy"})
    kept = []
    model(**tiny.batch()).loss.backward()
    layer = attachment.reference.model.get_decoder().layers[0]
    layer.register_forward_hook(lambda *_: kept.append(torch.is_grad_enabled()))
    model(**tiny.batch()).loss.backward()
    assert kept == [False]
    with torch.no_grad():
        model(**tiny.batch())
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        model(**tiny.batch())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("reference", ["base", "start", "copy"])
@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_nor_does_a_reference_beyond_its_own_pass(name, reference, kernel):
    check(Case(lora, {"name": name, **WITH_REFERENCE[name], "reference": reference, "kernel": kernel}), passes=2)
