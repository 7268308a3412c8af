"""`dft autoload`: one .pth file that costs nothing until a host is imported, and then cannot fail silently."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dft_axolotl.host import AxolotlHost
from dft_llamafactory.host import LlamaFactoryHost
from dft_plugin import autoload
from dft_plugin.cli.app import app
from dft_plugin.errors import PluginError
from dft_swift.host import SwiftHost

TARGETS = {"a_host.config": "an_adapter"}


def made(folder):
    """Make a folder as site-packages is: the .pth file, a host, and an adapter for it."""
    (folder / "a_host").mkdir(parents=True)
    (folder / "a_host" / "__init__.py").touch()
    (folder / "a_host" / "config.py").write_text("patched = 'no'\ndef line():\n    return __loader__.name\n")
    (folder / "an_adapter.py").write_text("def patch(module):\n    module.patched = 'yes'\n")
    path = folder / autoload.PTH
    path.write_text(autoload.pth_text(TARGETS, path))
    return folder


@pytest.fixture
def site(tmp_path):
    return made(tmp_path)


def python(site, code, before="", **environment):
    """Run code in a process that reads the .pth files of `site`, as the interpreter does at its start."""
    # As bytes: the process may be unable to say the folder's name.
    start = f"import os, sys, site; folder = os.fsdecode({os.fsencode(site)!r}); sys.path.insert(0, folder)\n"
    start += f"{before}\nloaded = set(sys.modules)\n"
    # Autoload may be on in the environment that runs the tests.
    start += "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'DftAutoload']\n"
    start += "site.addsitedir(folder)\n"
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
    code = "site.addsitedir(folder); print([type(f).__name__ for f in sys.meta_path].count('DftAutoload'))"
    assert python(site, code).stdout == "1\n"


@pytest.mark.parametrize(
    ("value", "patched"),
    [(word, "no") for word in ("0", "off", "OFF", "false", "False", "no", " no ")]
    + [(word, "yes") for word in ("1", "on", "true", "yes", "")],
)
def test_the_environment_turns_it_off(site, value, patched, monkeypatch):
    done = python(site, "from a_host import config; print(config.patched)", **{autoload.SWITCH: value})
    assert done.stdout == f"{patched}\n"
    monkeypatch.setenv(autoload.SWITCH, value)
    assert autoload.is_switched_off() == (patched == "no")


IN_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}


def test_an_environment_with_umlauts_in_its_path_starts_python_in_an_ascii_locale(tmp_path):
    """Python reads a .pth file in the locale's encoding, and dies of what it cannot decode."""
    folder = made(tmp_path / "Prüfung")
    assert (folder / autoload.PTH).read_bytes().isascii()
    done = python(folder, "from a_host import config; print(config.patched)", **IN_ASCII)
    assert (done.returncode, done.stdout) == (0, "yes\n"), done.stderr
    gone = python(folder, "import a_host.config", "sys.modules['dft_plugin'] = None", **IN_ASCII)
    assert "turn autoload off by deleting" in gone.stderr
    assert "Prüfung" in gone.stderr


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
    monkeypatch.setattr(autoload, "site_folders", lambda: [tmp_path.resolve()])
    monkeypatch.delenv(autoload.SWITCH, raising=False)
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


def test_status_names_the_targets_of_installed_hosts_where_it_is_on(elsewhere, monkeypatch):
    for host, version in ((AxolotlHost, "0.19.0"), (SwiftHost, None), (LlamaFactoryHost, None)):
        monkeypatch.setattr(host, "installed_version", lambda self, version=version: version)
    off = run("status").output
    assert "target  " not in off
    assert off.endswith(". Turn it on: dft autoload enable\n")
    assert run("enable").output.startswith("autoload is on for axolotl: ")
    said = run("status").output
    assert "target    axolotl.cli.config of axolotl (patched by dft_axolotl.autoload)" in said
    assert said.count("target  ") == 1


def test_enable_names_no_host_that_is_not_there(elsewhere, monkeypatch):
    for host in (AxolotlHost, SwiftHost, LlamaFactoryHost):
        monkeypatch.setattr(host, "installed_version", lambda self: None)
    assert run("enable").output.startswith("autoload is on for hosts that you install from now on: ")


def test_a_folder_that_cannot_be_written_to_is_one_clear_error(elsewhere, monkeypatch):
    monkeypatch.setattr(autoload, "pth_path", lambda: elsewhere.parent / "missing" / autoload.PTH)
    with pytest.raises(PluginError, match=r"cannot be written \(No such file or directory\).*`dft train`"):
        autoload.enable(TARGETS)


def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_a_write_that_fails_leaves_what_was_there(elsewhere, monkeypatch):
    elsewhere.write_text("before")
    monkeypatch.setattr(type(elsewhere), "replace", refuse)
    with pytest.raises(PluginError, match=r"cannot be written \(Permission denied\)\. An older one is still there"):
        autoload.enable(TARGETS)
    assert [(path.name, path.read_text()) for path in elsewhere.parent.iterdir()] == [(elsewhere.name, "before")]


def test_where_nobody_can_write_enable_is_true_of_what_is_there(elsewhere, monkeypatch):
    assert run("enable").exit_code == 0
    monkeypatch.setattr(autoload, "_write", refuse)
    again = run("enable")
    assert (again.exit_code, "autoload is on for" in again.output) == (0, True)
    elsewhere.write_text("another version's")
    assert isinstance(run("enable").exception, PluginError)


def test_where_nobody_can_write_disable_says_that_it_is_still_on(elsewhere, monkeypatch):
    elsewhere.write_text("ours")
    monkeypatch.setattr(type(elsewhere), "unlink", refuse)
    done = run("disable")
    assert "so autoload is still on. Delete it as its owner; until then DFT_PLUGIN_AUTOLOAD=0" in str(done.exception)
    assert "autoload is off" not in done.output


def test_disable_names_another_file_that_is_still_read(elsewhere, monkeypatch, tmp_path):
    elsewhere.write_text("ours")
    users = tmp_path / "users"
    users.mkdir()
    (users / autoload.PTH).write_text("ours, too")
    monkeypatch.setattr(autoload, "site_folders", lambda: [tmp_path.resolve(), users.resolve()])
    done = run("disable")
    assert f"autoload is still on, through {users.resolve() / autoload.PTH}" in str(done.exception)
    assert not elsewhere.exists()


def test_enable_does_not_claim_a_folder_that_python_does_not_read(elsewhere, monkeypatch):
    monkeypatch.setattr(autoload, "site_folders", list)
    assert "reads no .pth file in that folder" in str(run("enable").exception)


def test_the_folder_of_the_file_is_one_that_this_python_reads():
    assert autoload.pth_path().parent.resolve() in autoload.site_folders()


def test_enable_and_status_say_that_the_shell_turns_it_off(elsewhere, monkeypatch):
    monkeypatch.setenv(autoload.SWITCH, "off")
    assert "It does not in this shell: DFT_PLUGIN_AUTOLOAD=off is set. Unset it." in run("enable").output
    assert "not in force in this process (DFT_PLUGIN_AUTOLOAD=off)" in run("status").output
