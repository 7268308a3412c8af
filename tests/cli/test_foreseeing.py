"""What `dft check` knows before a run: which kernel `auto` will be, and what of tokens changes nothing."""

from __future__ import annotations

import pytest
import torch

from dft_plugin.cli import foreseeing
from dft_plugin.config.hosts import Host
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.kernels import choose
from dft_plugin.objectives import FAMILY, NLL, Rows

CATALOGUE = build_catalogue()


class Adapters(Host):
    """Trains adapters where its config says so."""

    name = "adapters"

    def trains_adapters(self, config):
        return config["adapters"]


def kernel(loss, **config):
    return foreseeing.kernel(Adapters(), {"adapters": True, **config}, CATALOGUE.settings(loss), CATALOGUE)


def test_the_kernel_is_said_as_far_as_it_is_known(monkeypatch):
    monkeypatch.setattr(foreseeing, "version", lambda name: "2.13.0+cu128")
    assert kernel("dft", adapters=False).startswith("auto: chunked (the head is trained). The run says which")
    assert kernel("dft", use_cpu=True).startswith(
        "auto: blocked (adapters, on a CPU) where the head is frozen, chunked"
    )
    assert kernel("dft").startswith(
        "auto: chunked on an accelerator, and where the head is trained; blocked where it is"
    )
    assert "Only the run knows its device" in kernel("dft")
    assert kernel("asft", use_cpu=True).startswith("auto: chunked (asft compares whole rows of logits)")
    assert kernel({"name": "nll", "first": {"name": "gift", "for": 2}}).startswith("auto: chunked (gift compares")
    assert kernel({"name": "eaft"}, use_cpu=True).startswith("auto: blocked")
    assert kernel({"kernel": "chunked"}) is None
    monkeypatch.setattr(foreseeing, "version", lambda name: "2.13.0+cpu")
    assert kernel("dft").startswith("auto: blocked (adapters, on a CPU)")


def test_that_is_what_a_run_chooses():
    assert [choose("cpu", trained=trained).__name__ for trained in (False, True)] == ["blocked", "chunked"]
    assert [choose("cuda", trained=trained).__name__ for trained in (False, True)] == ["chunked", "chunked"]


def said(loss):
    return foreseeing.without_effect(CATALOGUE.settings(loss), CATALOGUE)


EOS = {"always_learn": ["eos"]}
RAMP = {"from": 0, "to": 1, "until": 0.5}


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "nll"},
        {"name": "dft", "alpha": 0},
        {"name": "dft", "floor": 1},
        {"name": "eaft", "alpha": 0},
        {"name": "focal", "gamma": 0},
        {"name": "dft", "alpha": 0, "first": {"name": "nll", "for": 2}},
    ],
)
def test_tokens_that_have_weight_1_already_are_named(loss):
    (line,) = said({**loss, **EOS})
    assert line.startswith("`always_learn` changes nothing here: all weights are 1 already.")
    assert said(loss) == []


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "dft"},
        {"name": "dft", "alpha": RAMP},
        {"name": "dft", "alpha": {"from": 1, "to": 0, "until": 0.5}},
        {"name": "nll", "first": {"name": "dft", "for": 2}},
    ],
)
def test_what_changes_something_is_not_named(loss):
    assert said({**loss, **EOS}) == []


def test_a_factor_of_1_is_named():
    assert said({"weights": {"tokens": {"</think>": 1, 5: 2.0, 6: 1.0}}}) == [
        "`weights.tokens` changes nothing for `</think>`, `6`: the factor is 1."
    ]


def test_no_other_objective_gives_every_token_weight_1():
    rows = Rows(torch.tensor([-0.1, -3.0]), torch.tensor([0.095, 0.95]), torch.tensor([True, False]))
    plain = {"nll", "dft", "eaft", "focal"}
    assert set(foreseeing._WEIGHT_ONE) == plain
    assert NLL().weight(rows).tolist() == [1, 1]
    for kind in FAMILY:
        for option, value in foreseeing._WEIGHT_ONE.get(kind.name, {}).items():
            assert kind(**{option: value})
            assert option in kind.model_fields
