"""A pytest plugin: `loss: nll` under every trainer that a test trains, or nothing at all; and what came of each test.

`UNDER=stock` or `UNDER=nll`, and for models that a test trains by itself `UNDER=float64`; `UNDER_OUT` a folder;
`pytest -p under`. In `stock` nothing of ours is imported.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
import transformers

MODE, OUT = os.environ["UNDER"], Path(os.environ["UNDER_OUT"])
TESTS: dict[str, dict] = {}
NOW: list[str] = ["collection"]
MODELS: list[tuple] = []


def pytest_configure(config):
    """Wrap `Trainer.train`, which trainers of other packages inherit."""
    del config
    OUT.mkdir(parents=True, exist_ok=True)
    train = transformers.Trainer.train

    @functools.wraps(train)
    def recorded(self, *args, **kwargs):
        under = put_under(self) if MODE == "nll" else "stock"
        ended = "raised"
        try:
            result = train(self, *args, **kwargs)
            ended = "ended"
            return result
        finally:
            note(self, under, ended)

    transformers.Trainer.train = recorded


def put_under(trainer):
    """Activate `nll`, or say why not."""
    from dft_plugin import activate
    from dft_plugin.errors import DftError

    try:
        activate(trainer, "nll")
    except DftError as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "nll"


def watched_model(model):
    """Put `nll` on a model that a test trains by itself, and keep its weights when the test is over."""
    under = MODE
    if MODE == "nll":
        from dft_plugin import attach

        attach(model, "nll")
    if MODE == "float64":
        model.loss_function = cross_entropy_in_float64
    MODELS.append((model, under))
    return model


def cross_entropy_in_float64(logits, labels, **kwargs):
    """transformers' own loss, which takes logits to float32, in float64: apart by rounding alone."""
    del kwargs
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
    return torch.nn.functional.cross_entropy(logits.double().flatten(0, -2), shifted, ignore_index=-100).to(
        logits.dtype
    )


def note(trainer, under, ended):
    """Keep what was trained, and how it ended."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    keep(
        getattr(trainer, "model", None),
        {"under": under, "ended": ended, "losses": losses, "trainer": type(trainer).__name__},
    )


def keep(model, said):
    """Write a model's trained weights, and what is said of its training."""
    trainings = TESTS.setdefault(NOW[0], {}).setdefault("trainings", [])
    name = f"{hashlib.sha256(NOW[0].encode()).hexdigest()[:12]}-{len(trainings)}.pt"
    trained = [] if model is None else [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    torch.save({n: p.detach().float().clone() for n, p in trained}, OUT / name)
    trainings.append({**said, "weights": name, "model": type(model).__name__})


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    """Keep the weights of models that the test has trained by itself."""
    del item
    for model, under in MODELS:
        keep(model, {"under": under, "ended": "ended", "losses": [], "trainer": "a loop"})
    MODELS.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Remember which test runs, and start each from the same random state."""
    del nextitem
    NOW[0] = item.nodeid
    transformers.set_seed(0)


def pytest_runtest_logreport(report):
    """Note how it ended."""
    found = TESTS.setdefault(report.nodeid, {})
    said = report.when == "call" or report.outcome != "passed"
    if said and ("outcome" not in found or report.outcome == "failed"):
        found["outcome"] = report.outcome
        text = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr or "")
        crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", None)
        found["why"] = " ".join((crash or text).split())[:400]


def pytest_sessionfinish(session):
    """Write what was found."""
    del session
    (OUT / "tests.json").write_text(json.dumps(TESTS, indent=0))
