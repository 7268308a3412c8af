"""A labelled step waits for the device where the stock model's does, for its labels, and for nothing else."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from support import tiny, waits
from support.stepping import Steps, watched

from dft_plugin import attach
from dft_plugin.hf.labels import SentAhead

every_case = pytest.mark.parametrize("case", waits.CASES.values(), ids=waits.CASES.keys())


@every_case
def test_a_step_waits_for_its_labels_and_for_what_the_stock_model_waits_for(case):
    for ours, stock in zip(watched(case, case.loss), watched(case), strict=True):
        assert ours.seen - stock.seen == waits.Counter()
        assert (ours.fetched, ours.read) == (case.fetched, case.read)


def test_labels_go_ahead_of_the_backbone_and_the_transform_is_read_behind_the_kernel(monkeypatch):
    model, happened = waits.CASES["scale by a tensor"].make(), []
    attachment = attach(model)
    fetched = waits.transfer.Fetched

    def noted(name, call):
        return lambda *args, **kwargs: (happened.append(name), call(*args, **kwargs))[1]

    model(**tiny.batch())
    monkeypatch.setattr(fetched, "__init__", noted("fetch", fetched.__init__))
    monkeypatch.setattr(fetched, "read", noted("read", fetched.read))
    model.model.register_forward_hook(lambda *_: happened.append("backbone"))
    attachment.plan = replace(attachment.plan, kernel=noted("kernel", attachment.plan.kernel))
    model(**tiny.batch())
    # In the middle the labels, which whoever selects them asks for once more: they are on the CPU by then.
    assert happened == ["fetch", "backbone", "fetch", *["read", "fetch", "read"], "kernel", "read"]


def test_labels_are_fetched_again_only_if_they_are_others_by_now():
    labels_BS = tiny.batch()["labels"]
    ahead = SentAhead(labels_BS)
    first = ahead.fetch(labels_BS)
    assert ahead.fetch(labels_BS) is first
    assert ahead.fetch(labels_BS.clone()) is not first
    labels_BS[0, 0] = 7
    assert ahead.fetch(labels_BS) is not first


WAITS = {
    "item": lambda x: x.sum().item(),
    "mask": lambda x: x[x > 0],
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.to("cpu"),
    "nonzero": torch.nonzero,
    "if": lambda x: 1 if x.all() else 0,
    "allclose": lambda x: torch.allclose(x, x),
    "unique": torch.unique,
    "a number at indices": lambda x: x.__setitem__(torch.tensor([0, 1]), 2.0),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_a_wait_is_seen(wait):
    with waits.watching() as found:
        wait(torch.ones(3))
    assert found.seen.total() == 1
    assert found.seen.most_common()[0][0][1].startswith("test_waits.py")


def test_what_was_fetched_is_on_the_cpu_until_it_is_sent():
    with waits.watching() as found:
        copy = waits.transfer.Fetched(torch.ones(3)).read()
        (copy + 1).nonzero()
        assert found.seen.total() == 0
        waits.transfer.send(copy, torch.device("cpu")).nonzero()
        (copy + torch.ones(3)).nonzero()
    assert found.seen.total() == 2
    assert (found.fetched, found.read) == (1, 1)


@pytest.mark.gpu
@every_case
def test_a_step_on_cuda_waits_where_the_stock_model_waits(case):
    ours, stock = (waits_on_cuda(case, loss) for loss in (case.loss, None))
    assert len(ours) <= len(stock), ours


def waits_on_cuda(case, loss):
    """What torch warns of in the third step: neither an event nor a copy to pinned memory is a wait for it."""
    steps = Steps(case, loss, "cuda")
    for _ in range(2):
        steps(steps.batch())
    batch = steps.batch()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            steps(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename}:{w.lineno}" for w in seen if "called a synchronizing" in str(w.message)]
