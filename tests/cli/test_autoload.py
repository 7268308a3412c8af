"""`dft autoload`: one .pth file that costs nothing until a host is imported, and then cannot fail silently."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dft_plugin import autoload
from dft_plugin.cli.app import app
from dft_plugin.errors import PluginError

TARGETS = {"a_host.config": "an_adapter"}


@pytest.fixture
def site(tmp_path):
    """A folder as site-packages is: the .pth file, a host, and an adapter for it."""
    (tmp_path / "a_host").mkdir()
    (tmp_path / "a_host" / "__init__.py").touch()
    (tmp_path / "a_host" / "config.py").write_text("patched = 'no'\ndef line():\n    return __loader__.name\n")
    (tmp_path / "an_adapter.py").write_text("def patch(module):\n    module.patched = 'yes'\n")
    path = tmp_path / autoload.PTH
    path.write_text(autoload.pth_text(TARGETS, path))
    return tmp_path


def python(site, code, before="", **environment):
    """Run code in a process that reads the .pth files of `site`, as the interpreter does at its start."""
    start = f"import sys, site; sys.path.insert(0, {str(site)!r}); {before}\nloaded = set(sys.modules)\n"
    # Autoload may be on in the environment that runs the tests.
    start += "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'DftAutoload']\n"
    start += f"site.addsitedir({str(site)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", start + code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_start_of_python_loads_no_module(site):
    done = python(site, "print(sorted(set(sys.modules) - loaded), type(sys.meta_path[0]).__name__)")
    assert done.stdout == "[] DftAutoload\n", done.stderr


def test_the_hosts_module_is_patched_and_otherwise_as_it_was(site):
    code = "from a_host import config; import inspect\n"
    code += "print(config.patched, type(config.__loader__).__name__, config.__spec__.loader is config.__loader__)\n"
    code += "print('return' in inspect.getsource(config.line))"
    assert python(site, code).stdout == "yes SourceFileLoader True\nTrue\n"


def test_a_module_that_is_imported_again_is_patched_again(site):
    code = "import a_host.config; del sys.modules['a_host.config']; import a_host.config as c; print(c.patched)"
    assert python(site, code).stdout == "yes\n"


def test_it_is_installed_once_however_often_site_reads_it(site):
    code = f"site.addsitedir({str(site)!r}); print([type(f).__name__ for f in sys.meta_path].count('DftAutoload'))"
    assert python(site, code).stdout == "1\n"


def test_the_environment_turns_it_off(site):
    assert python(site, "from a_host import config; print(config.patched)", **{autoload.SWITCH: "0"}).stdout == "no\n"


def test_only_the_host_loads_our_package_and_without_torch(site):
    code = "import json; before = 'dft_plugin' in sys.modules\nimport a_host.config\n"
    code += "print(before, 'dft_plugin.autoload' in sys.modules, 'torch' in sys.modules)"
    assert python(site, code).stdout == "False True False\n"


@pytest.mark.parametrize("gone", ["dft_plugin", "dft_plugin.autoload"])
def test_a_package_that_is_gone_stops_the_import_of_the_host(site, gone):
    done = python(
        site,
        "try:\n  import a_host.config\nexcept ImportError:\n  print('swallowed')",
        f"sys.modules[{gone!r}] = None",
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "RuntimeError: dft-plugin's autoload is on, but dft-plugin cannot be imported" in done.stderr
    assert f"turn autoload off by deleting {site / autoload.PTH}" in done.stderr


@pytest.mark.parametrize(
    "text", ["import a_module_that_is_gone", "def patch(module):\n    import a_module_that_is_gone"]
)
def test_an_adapter_that_cannot_be_imported_stops_it_too(site, text):
    (site / "an_adapter.py").write_text(text)
    done = python(site, "try:\n  import a_host.config\nexcept ImportError:\n  print('swallowed')")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        "autoload: an_adapter could not patch a_host.config (No module named 'a_module_that_is_gone')" in done.stderr
    )


def test_an_error_of_patch_stops_it_as_it_is(site):
    (site / "an_adapter.py").write_text("def patch(module):\n    raise KeyError('mine')")
    done = python(site, "import a_host.config")
    assert done.stderr.endswith("KeyError: 'mine'\n")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A site-packages of the test's own, and the commands."""
    path = tmp_path / autoload.PTH
    monkeypatch.setattr(autoload, "pth_path", lambda: path)
    others = [finder for finder in sys.meta_path if type(finder).__name__ != "DftAutoload"]
    monkeypatch.setattr(sys, "meta_path", others)
    return path


def run(*words):
    return CliRunner().invoke(app, ["autoload", *words])


def test_enable_status_disable(elsewhere, monkeypatch):
    other = elsewhere.with_name("other.pth")
    other.write_text("# not ours\n")
    off = run("status")
    assert (off.exit_code, f"off: there is no {elsewhere}" in off.output) == (1, True)

    assert run("enable").exit_code == 0
    waiting = run("status")
    assert (waiting.exit_code, "not in force in this process" in waiting.output) == (2, True)
    monkeypatch.setattr(sys, "meta_path", [type("DftAutoload", (), {})(), *sys.meta_path])
    on = run("status")
    assert (on.exit_code, f"on: {elsewhere}" in on.output) == (0, True)

    elsewhere.write_text(elsewhere.read_text() + "\n")
    outdated = run("status")
    assert (outdated.exit_code, "Run: dft autoload enable" in outdated.output) == (2, True)

    assert "removed" in run("disable").output
    assert "there was no" in run("disable").output
    assert [path.name for path in elsewhere.parent.iterdir()] == [other.name]


def test_status_names_the_targets_of_every_host(elsewhere):
    assert "target    axolotl.cli.config (patched by dft_axolotl.autoload)" in run("status").output


def test_a_folder_that_cannot_be_written_to_is_one_clear_error(elsewhere, monkeypatch):
    monkeypatch.setattr(autoload, "pth_path", lambda: elsewhere.parent / "missing" / autoload.PTH)
    with pytest.raises(PluginError, match=r"cannot be written \(No such file or directory\).*`dft train`"):
        autoload.enable(TARGETS)
