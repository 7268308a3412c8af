"""What an import costs, measured in a fresh interpreter; and the public names."""

from __future__ import annotations

import inspect
import os
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import dft_plugin
from dft_plugin import errors

HEAVY = ("torch", "transformers", "accelerate", "peft", "trl")


def heavy_modules_after(statement: str) -> list[str]:
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import dft_plugin",
        "from dft_plugin import Number, Objective, Rows, hookimpl",
        "import dft_plugin.errors, dft_plugin.config.settings, dft_plugin.objectives, dft_plugin.config.hosts",
        "from dft_plugin.config.plugins import build_manager; build_manager(third_party=False)",
        "import dft_axolotl, dft_axolotl.hooks, dft_axolotl.host, dft_axolotl.args",
        "import dft_plugin.autoload",
        "import dft_trl.hooks",
    ],
)
def test_reading_a_configuration_loads_neither_torch_nor_a_host(statement):
    assert heavy_modules_after(statement) == []


def test_the_loss_functions_need_torch_and_nothing_else():
    # This also shows that the test above can fail.
    assert heavy_modules_after("from dft_plugin import linear_token_loss, token_loss") == ["torch"]


def test_the_public_names_are_these():
    # A user's code depends on them: add here, and to the changelog, but do not take away.
    assert set(dft_plugin.__all__) == {
        "Attachment",
        "Clock",
        "ClockError",
        "ConflictError",
        "DftError",
        "Facts",
        "InputError",
        "LabelError",
        "NonFiniteError",
        "NotActiveError",
        "Number",
        "Objective",
        "PluginError",
        "Rows",
        "SettingsError",
        "ShardError",
        "UnknownNameError",
        "UnsupportedModelError",
        "__version__",
        "activate",
        "attach",
        "hookimpl",
        "linear_token_loss",
        "token_loss",
        "token_loss_from_logp",
        "vocab_parallel_token_loss",
    }


def test_every_error_is_public_and_loads_no_torch():
    found = [
        name for name, kind in vars(errors).items() if isinstance(kind, type) and kind.__module__ == errors.__name__
    ]
    assert "DftError" in found
    assert set(found) <= set(dft_plugin.__all__)
    assert all(getattr(dft_plugin, name) is getattr(errors, name) for name in found)
    assert heavy_modules_after(f"from dft_plugin import {', '.join(found)}") == []


@pytest.mark.parametrize("name", dft_plugin.__all__)
def test_a_public_name_is_there_and_listed(name):
    assert getattr(dft_plugin, name) is not None
    assert name in dir(dft_plugin)


def test_a_name_that_is_not_there_reads_as_in_any_module():
    with pytest.raises(AttributeError, match=r"^module 'dft_plugin' has no attribute 'losses'$"):
        _ = dft_plugin.losses


def test_no_module_bears_the_name_of_a_function_that_its_package_exports():
    # `import dft_plugin.kernels.chunked as m` would give the function.
    for package in (dft_plugin, *_subpackages()):
        modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
        names = {*dir(package), *getattr(package, "__all__", ())}
        shadowed = {name for name in modules & names if not inspect.ismodule(getattr(package, name))}
        assert not shadowed, f"{package.__name__}: {shadowed}"


def _subpackages():
    found = pkgutil.walk_packages(dft_plugin.__path__, "dft_plugin.")
    return [import_module(module.name) for module in found if module.ispkg]
