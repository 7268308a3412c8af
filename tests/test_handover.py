"""How a loss reaches the processes that train, and how a host's function is put back."""

from __future__ import annotations

from types import ModuleType

import pytest
import yaml

from dft_plugin.config import handover
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import SettingsError

PLAIN = yaml.safe_load


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


@pytest.mark.parametrize("argv", [[handover.OPTION], [handover.OPTION, "dft"]])
def test_an_argument_that_carries_no_loss_is_one_clear_error(argv):
    with pytest.raises(SettingsError, match="wants a loss as JSON behind it"):
        handover.take(argv)


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


def test_a_host_that_reads_with_pyyaml_reads_with_ours_and_has_its_own_back(tmp_path):
    path = tmp_path / "sft.json"
    path.write_text('{\n\t"loss": "dft"\n}')
    host = ModuleType("host")
    host.yaml = yaml
    with handover.read_by_us(host), path.open() as file:
        assert host.yaml.safe_load(file) == {"loss": "dft"}
        assert host.yaml.dump({"a": 1}) == "a: 1\n"
        assert host.yaml.safe_load("a: 1") == {"a": 1}
        assert yaml.safe_load is PLAIN, "PyYAML is everybody's"
    assert host.yaml is yaml
    with handover.read_by_us(yaml), path.open("rb") as file:
        assert yaml.safe_load(file) == {"loss": "dft"}
    assert yaml.safe_load is PLAIN
