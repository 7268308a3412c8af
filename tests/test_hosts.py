"""What every host gets from its base: versions too old or new, the hook of a trainer, the choice of the best."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from types import ModuleType
from typing import ClassVar

import pytest

from dft_plugin.config.hosts import Choice, Host
from dft_plugin.config.rules import Rule, is_on
from dft_plugin.errors import ConflictError
from dft_plugin.testing import check_host

PLUGGY = metadata.version("pluggy")


class Pluggy(Host):
    """Of a distribution that is installed wherever we are."""

    name: ClassVar[str] = "pluggy"
    distribution: ClassVar[str] = "pluggy"
    tested: ClassVar[str] = ">=0,<999"
    install: ClassVar[str] = "pip install 'pluggy==999'"
    trainer_class: ClassVar[str] = "a_host:Trainer"
    hook_class: ClassVar[str] = "an_adapter:Hook"
    early_stopping: ClassVar[tuple[str, ...]] = ("stop_after",)


class Old(Pluggy):
    tested: ClassVar[str] = ">=998.1,<999"


class New(Pluggy):
    tested: ClassVar[str] = ">=0.0.1,<0.0.2"


class Gone(Pluggy):
    distribution: ClassVar[str] = "no-such-distribution-of-ours"


def test_a_tested_version_is_no_problem():
    assert (Pluggy().version_problem(), Pluggy().is_too_old()) == (None, False)


def test_an_older_version_is_too_old_and_says_so_by_name():
    assert Old().is_too_old()
    assert Old().version_problem() == (
        f"pluggy {PLUGGY} is too old (>=998.1,<999 was tested). Run: pip install 'pluggy==999'"
    )


def test_a_newer_version_is_only_untested():
    assert not New().is_too_old()
    assert New().version_problem() == (
        f"pluggy {PLUGGY} was not tested (>=0.0.1,<0.0.2 was). Run: pip install 'pluggy==999'"
    )


def test_what_is_not_installed_is_not_old():
    assert not Gone().is_too_old()
    assert Gone().version_problem().startswith("no-such-distribution-of-ours is not installed.")


@pytest.mark.parametrize(
    ("tested", "version", "old"),
    [
        (">=1.16,<1.17", "1.15.9", True),
        (">=1.16,<1.17", "1.9.0", True),
        (">=1.16,<1.17", "1.16.0", False),
        (">=1.16,<1.17", "1.17.0.dev0", False),
        (">=1.16,<1.17", "2.0", False),
        ("==0.9.5", "0.9.4", True),
        ("~=0.9.4", "0.9.3", True),
        ("<2", "0.1", False),
    ],
)
def test_older_is_below_what_was_tested(tested, version, old, monkeypatch):
    monkeypatch.setattr(Pluggy, "tested", tested)
    monkeypatch.setattr(Pluggy, "installed_version", lambda self: version)
    assert Pluggy().is_too_old() is old


@pytest.fixture
def modules(monkeypatch):
    """A host and an adapter, imported already."""
    host, adapter = ModuleType("a_host"), ModuleType("an_adapter")
    host.Trainer = type("Trainer", (), {})
    adapter.Hook = type("Hook", (), {})
    monkeypatch.setitem(sys.modules, "a_host", host)
    monkeypatch.setitem(sys.modules, "an_adapter", adapter)
    return host, adapter


def test_a_hook_is_for_the_hosts_trainer_and_for_what_derives_from_it(modules):
    host, adapter = modules
    derived = type("Mine", (host.Trainer,), {})
    assert Pluggy().trainer_hook(host.Trainer()) is adapter.Hook
    assert Pluggy().trainer_hook(derived()) is adapter.Hook
    assert Pluggy().trainer_hook(object()) is None


def test_a_host_that_was_not_imported_is_not_imported():
    assert "a_host" not in sys.modules
    assert Pluggy().trainer_hook(object()) is None


def test_a_trainer_of_a_host_that_is_too_old_is_refused_by_name(modules):
    host, _ = modules
    assert Old().trainer_hook(object()) is None
    with pytest.raises(ConflictError, match=rf"pluggy {PLUGGY} is too old"):
        Old().trainer_hook(host.Trainer())


@pytest.mark.parametrize(
    ("config", "choice"),
    [
        ({}, None),
        ({"greater_is_better": True}, None),
        ({"load_best_model_at_end": False, "lr_scheduler_type": "cosine"}, None),
        ({"load_best_model_at_end": True}, Choice(None, None)),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, Choice(None, None)),
        ({"lr_scheduler_type": "greedy"}, Choice(None, None)),
        ({"stop_after": 3}, Choice(None, None)),
        (
            {"metric_for_best_model": "eval_dft/nll", "greater_is_better": False},
            Choice("eval_dft/nll", False),
        ),
    ],
)
def test_by_what_a_config_of_transformers_chooses(config, choice):
    assert Pluggy().chooses_by(config) == choice


class Named(Pluggy):
    hook_class: ClassVar[str] = "dft_plugin.hf.trainer:TrainerHook"
    launch_function: ClassVar[str] = "json:dumps"
    rules: ClassVar[tuple[Rule, ...]] = (Rule("smoothing", is_on, "it smooths.", "Remove it."),)

    def recognise(self, config):
        return "plug" in config

    def replaces(self, config, settings):
        return []


def test_a_host_names_its_functions_and_rules_and_the_base_calls_and_reads_them():
    check_host(Named(), {"plug": 1}, {})
    assert Named().launch({"a": 1}) == '{"a": 1}'
    assert list(map(str, Named().conflicts({"smoothing": True}))) == ["`smoothing`: it smooths. Remove it."]
    with pytest.raises(ConflictError, match="pluggy makes no trainer that dft-plugin could take"):
        Named().show_trainer(None, ())
    with pytest.raises(ConflictError, match="`dft evaluate` cannot make the trainer of pluggy"):
        Named().evaluator(None, ())


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("launch_function", "json", "launch_function is 'json'; write `module:name`"),
        ("launch_function", "no_such_package.run:show", "launch_function: there is no module no_such_package.run"),
        ("evaluate_function", "json:dumps", "does not say (`held_out`) which lines name data to evaluate on"),
        ("autoload_targets", {"json": "json.no_such"}, "autoload_targets: there is no module json.no_such"),
        ("rules", (Rule("smoothing", is_on, "it smooths.", ""),), "the rule of smoothing says no remedy"),
        ("install", "", "Broken has no install"),
    ],
)
def test_the_suite_finds_what_is_missing(attribute, value, said):
    broken = type("Broken", (Named,), {attribute: value})
    with pytest.raises(AssertionError, match=re.escape(said)):
        check_host(broken(), {"plug": 1}, {})
