"""How a loss reaches the processes that train, and how a host's function is put back."""

from __future__ import annotations

from types import ModuleType

import pytest

from dft_plugin.config import handover
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import SettingsError


def test_what_is_handed_over_is_what_arrives():
    settings = build_catalogue().settings({"name": "dft", "alpha": 0.7, "scratch_mb": 8})
    argv = [*handover.words(settings), "a config.yml", "--seed=3"]
    loss, rest = handover.take(argv)
    assert build_catalogue().settings(loss) == settings
    assert rest == ["a config.yml", "--seed=3"]


def test_it_may_stand_anywhere_and_may_be_missing():
    assert handover.take(["a", handover.OPTION, '"dft"', "b"]) == ("dft", ["a", "b"])
    assert handover.take(["a", "b"]) == (None, ["a", "b"])


def test_where_a_loss_must_be_given_its_absence_is_one_clear_error():
    with pytest.raises(SettingsError, match=r"no `--dft-settings` was given.*Start with `dft train`\."):
        handover.demand(["a"])


def test_an_attribute_is_put_back_also_after_an_error():
    module = ModuleType("host")
    module.train = plain = object()
    with pytest.raises(ZeroDivisionError), handover.swapped(module, "train", None):
        _ = 1 / (module.train or 0)
    assert module.train is plain


def test_what_a_class_inherits_is_inherited_again():
    class Base:
        def step(self):
            return "base"

    class Child(Base):
        pass

    with handover.swapped(Child, "step", lambda self: "ours"):
        assert Child().step() == "ours"
        assert Base().step() == "base"
    assert "step" not in vars(Child)
