"""What a plugin can add, and what happens when one is broken."""

from __future__ import annotations

import importlib
import sys
from typing import ClassVar

import pytest
import torch

from dft_plugin import hookimpl, token_loss
from dft_plugin.config.hosts import Host
from dft_plugin.config.plugins import build_catalogue, build_manager
from dft_plugin.errors import PluginError, SettingsError
from dft_plugin.kernels import auto, blocked, chunked, reference
from dft_plugin.objectives import DFT, FAMILY, Number, Objective

SHIPPED = {objective.name for objective in FAMILY}


class Constant(Objective):
    """Every token gets the same weight."""

    name: ClassVar[str] = "constant"
    value: Number = 1.0

    def weight(self, rows):
        return rows.logp_T.new_full(rows.logp_T.shape, self.value)


def naive(*args, **kwargs):
    """A kernel: stands after `kernel:` by the name of its function."""
    return reference(*args, **kwargs)


class Slurm(Host):
    name: ClassVar[str] = "slurm"


class Acme:
    """One plugin, with every hook."""

    @hookimpl
    def register_objectives(self):
        return [Constant]

    @hookimpl
    def register_kernels(self):
        return (kernel for kernel in [naive])

    @hookimpl
    def register_hosts(self):
        return [Slurm()]


class Broken:
    """Fails when it is asked."""

    @hookimpl
    def register_objectives(self):
        raise ZeroDivisionError("no such luck")


def catalogue_with(**plugins):
    manager = build_manager(third_party=False)
    for name, plugin in plugins.items():
        manager.register(plugin, name=name)
    return build_catalogue(manager)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a plugin as pip would: a module, and the metadata of its distribution."""
    installed = []

    def install(name: str, code: str) -> str:
        (tmp_path / f"{name}_module.py").write_text(code)
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[dft_plugin]\nmain = {name}_module\n")
        importlib.invalidate_caches()
        installed.append(f"{name}_module")
        return f"{name}:main"

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for module in installed:
        sys.modules.pop(module, None)


WORKING = """
from dft_plugin import Objective, hookimpl

class Halved(Objective):
    name = "halved"

@hookimpl
def register_objectives():
    return [Halved]
"""


def test_hook_register_objectives():
    catalogue = catalogue_with(acme=Acme())
    assert catalogue.objectives["constant"].item is Constant
    assert catalogue.objectives["constant"].owner == "acme"
    settings = catalogue.settings({"name": "constant", "value": 0.5})
    assert catalogue.plan(settings).objective == Constant(value=0.5)


def test_hook_register_kernels():
    catalogue = catalogue_with(acme=Acme())
    assert catalogue.kernels["naive"].owner == "acme"
    plan = catalogue.plan(catalogue.settings({"kernel": "naive"}))
    assert (plan.kernel, plan.path) == (naive, "lean")


def test_hook_register_hosts():
    catalogue = catalogue_with(acme=Acme())
    assert isinstance(catalogue.hosts["slurm"].item, Slurm)
    assert catalogue.hosts["slurm"].owner == "acme"


def test_every_hook_has_a_test():
    hooks = {name for name in vars(build_manager(third_party=False).hook) if name[0] != "_"}
    assert hooks
    assert hooks == {name.removeprefix("test_hook_") for name in globals() if "test_hook_" in name}


def test_what_is_built_in_comes_through_the_same_hooks():
    catalogue = catalogue_with()
    assert {name: entry.item for name, entry in catalogue.objectives.items()} == {kind.name: kind for kind in FAMILY}
    assert {name: entry.item for name, entry in catalogue.kernels.items()} == {
        "chunked": chunked,
        "blocked": blocked,
        "reference": reference,
    }
    assert catalogue.hosts == {}
    entries = [*catalogue.objectives.values(), *catalogue.kernels.values()]
    assert {entry.owner for entry in entries} == {"dft_plugin"}

    manager = build_manager(third_party=False)
    manager.unregister(name="dft_plugin")
    assert not build_catalogue(manager).objectives


@pytest.mark.parametrize("path", ["auto", "logits"])
def test_a_plan_without_a_named_kernel_leaves_the_choice_to_the_head(path):
    catalogue = catalogue_with()
    plan = catalogue.plan(catalogue.settings({"alpha": "0.5", "kernel": path}))
    assert (plan.objective, plan.kernel, plan.path) == (DFT(alpha=0.5), auto, path)


def test_scratch_is_in_bytes():
    catalogue = catalogue_with()
    assert catalogue.plan(catalogue.settings({"scratch_mb": 3})).scratch_bytes == 3 * 2**20


def test_the_names_of_a_plugin_are_offered_when_one_is_mistyped():
    with pytest.raises(SettingsError, match=r"Did you mean `constant`\? Allowed: dft, nll, .*, constant\."):
        catalogue_with(acme=Acme()).settings("constand")


def test_two_plugins_with_one_name_are_an_error_that_names_both():
    class Rival:
        @hookimpl
        def register_objectives(self):
            return [Constant]

    with pytest.raises(PluginError) as caught:
        catalogue_with(acme=Acme(), rival=Rival())
    assert str(caught.value) == (
        "`constant` is registered by acme and by rival (register_objectives). Uninstall one of them, or rename it."
    )


def test_a_plugin_cannot_take_the_place_of_what_is_built_in():
    class Impostor(DFT):
        """Another dft."""

    class Plugin:
        @hookimpl
        def register_objectives(self):
            return [Impostor]

    with pytest.raises(PluginError, match="`dft` is registered by dft_plugin and by plugin"):
        catalogue_with(plugin=Plugin())


def test_a_plugin_that_fails_when_asked_is_named_and_the_others_work():
    with pytest.warns(RuntimeWarning) as warned:
        catalogue = catalogue_with(broken=Broken(), acme=Acme())
    assert [str(warning.message) for warning in warned] == [
        "dft-plugin: the plugin broken is broken and left out (ZeroDivisionError: no such luck)."
    ]
    assert set(catalogue.objectives) == {*SHIPPED, "constant"}


def test_a_plugin_that_registers_something_without_a_name_is_left_out():
    class Plugin:
        @hookimpl
        def register_objectives(self):
            return [object]

    with pytest.warns(RuntimeWarning, match=r"the plugin odd is broken .* is no subclass of dft_plugin.Objective"):
        catalogue = catalogue_with(odd=Plugin())
    assert set(catalogue.objectives) == SHIPPED


def test_an_installed_plugin_is_found_by_its_entry_point(install):
    owner = install("dft_acme", WORKING)
    assert build_catalogue().objectives["halved"].owner == owner


def test_without_third_parties_no_entry_point_is_loaded(install):
    install("dft_acme", "raise RuntimeError('loaded')")
    names = [name for name, _ in build_manager(third_party=False).list_name_plugin()]
    assert names == ["dft_plugin"]


def test_the_loss_functions_read_the_plugins_once_and_not_in_every_step(install):
    logits, labels = torch.zeros(1, 4), torch.tensor([2])
    token_loss(logits, labels)
    install("dft_late", "import no_such_package")
    with pytest.warns(RuntimeWarning, match="dft_late:main is broken"):
        build_catalogue()
    token_loss(logits, labels)  # reading them again would warn, and a warning is a failure


def test_an_installed_plugin_that_cannot_be_imported_is_named_and_the_others_work(install):
    install("dft_bad", "import no_such_package")
    install("dft_good", WORKING)
    with pytest.warns(RuntimeWarning) as warned:
        manager = build_manager()
    assert [str(warning.message) for warning in warned] == [
        "dft-plugin: the plugin dft_bad:main is broken and left out "
        "(ModuleNotFoundError: No module named 'no_such_package')."
    ]
    assert {"dft", "nll", "halved"} <= set(build_catalogue(manager).objectives)


def test_a_hook_with_a_mistyped_name_is_refused(install):
    install("dft_typo", WORKING.replace("def register_objectives", "def register_objective"))
    install("dft_good", WORKING.replace("halved", "quartered"))
    with pytest.warns(RuntimeWarning, match=r"dft_typo:main is broken .*unknown hook 'register_objective'"):
        manager = build_manager()
    objectives = build_catalogue(manager).objectives
    assert "quartered" in objectives
    assert "halved" not in objectives


def test_a_plugin_that_fails_in_a_later_hook_leaves_nothing_behind(recwarn):
    class HalfBroken:
        @hookimpl
        def register_objectives(self):
            return [Constant]

        @hookimpl
        def register_hosts(self):
            raise RuntimeError("no hosts today")

    manager = build_manager(third_party=False)
    manager.register(HalfBroken(), name="half-broken")
    assert "constant" not in build_catalogue(manager).objectives
    said = str(recwarn.pop(RuntimeWarning).message)
    assert "half-broken is broken and left out (RuntimeError: no hosts today)" in said


@pytest.mark.parametrize("name", ["auto", "logits"])
def test_a_kernel_cannot_take_a_word_of_ours(name):
    def kernel():
        pass

    kernel.__name__ = name

    class Taker:
        @hookimpl
        def register_kernels(self):
            return [kernel]

    manager = build_manager(third_party=False)
    manager.register(Taker(), name="taker")
    with pytest.raises(PluginError, match=f"`{name}` is registered by dft_plugin itself and by taker"):
        build_catalogue(manager)
