"""What Axolotl can put in the place of the model's cross-entropy is superseded: the real thing, on a CPU."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

pytest.importorskip("axolotl")

import transformers.loss.loss_utils
from support.axolotl_runs import PLUGIN, SAVED, assert_same, command, train, write_config

pytestmark = pytest.mark.host

LIGER = "axolotl.integrations.liger.LigerPlugin"
CCE = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
# On the first batch only: it asks for no loss function, so it is asked for its loss of a few positions and of all.
ASKED = 3
NO_FORK = importlib.util.find_spec("cut_cross_entropy") is None or (
    importlib.util.find_spec("cut_cross_entropy.transformers") is None
)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("liger_fused_linear_cross_entropy", marks=pytest.mark.newest),
        pytest.param("liger_cross_entropy", marks=pytest.mark.full),
    ],
)
def test_liger(key, home, expected, monkeypatch):
    """The real Liger, whose kernels Triton interprets where there is no GPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    write_config(home, **SAVED, plugins=[LIGER, PLUGIN], **{key: True})
    done = command(home, "axolotl", "train", "config.yml", "--launcher", "python")
    assert_same(home, done, expected)
    assert f"kernel chunked; replaces {key}" in done.stderr


def train_with_cut_cross_entropy(home, *plugins):
    write_config(home, **SAVED, plugins=[*plugins, PLUGIN])
    return command(home, "axolotl", "train", "config.yml", "--launcher", "python")


def test_cut_cross_entropy_of_pypi(home, expected):
    """The real package, in a forward as Axolotl's fork has it; `cce_on_cpu` says what it computed."""
    pytest.importorskip("cut_cross_entropy")
    done = train_with_cut_cross_entropy(home, "cce_on_cpu.PatchLlama")
    assert_same(home, done, expected)
    assert done.stderr.count("cut-cross-entropy computed") == ASKED


@pytest.mark.skipif(NO_FORK, reason="Axolotl's fork of cut-cross-entropy is on no package index")
def test_cut_cross_entropy_of_axolotl(home, expected):
    """Axolotl's own plugin, and its own fork of the package."""
    done = train_with_cut_cross_entropy(home, CCE, "cce_on_cpu.ForkOnCpu")
    assert_same(home, done, expected)
    assert "Applying Cut Cross Entropy to model type: llama" in done.stderr + done.stdout
    assert "kernel chunked; replaces cut_cross_entropy" in done.stderr
    assert done.stderr.count("cut-cross-entropy computed") == ASKED


def test_flash_attentions_cross_entropy(home, monkeypatch):
    """Its kernel needs a GPU; Axolotl's patch that would call it is the real one."""
    calls = []

    def cross_entropy_loss(logits, labels, ignore_index):
        calls.append(labels)
        return (0.0 * logits.sum(-1), None)

    name = "flash_attn"
    for part in ("", ".ops", ".triton", ".cross_entropy"):
        name += part
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    module.cross_entropy_loss = cross_entropy_loss
    losses = transformers.loss.loss_utils
    monkeypatch.setattr(losses, "fixed_cross_entropy", losses.fixed_cross_entropy)
    on = {"flash_attn_cross_entropy": True, "is_llama_derived_model": True, "max_steps": 1}
    ours = train(write_config(home, **on))
    assert [entry["loss"] for entry in ours.logs] == pytest.approx(ours.expected, rel=1e-6)
    assert calls == []
    train(write_config(home, **on, drop=["plugins", "loss"]))
    assert len(calls) == 1
