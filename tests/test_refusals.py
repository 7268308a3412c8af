"""A refusal ends a host's own program in its message, and a host's refusal is a line of ours, with what to type."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import ClassVar

import pytest

from dft_plugin.config.hosts import Host, Launch
from dft_plugin.config.refusals import SWITCH, without_traceback
from dft_plugin.config.settings import Settings
from dft_plugin.errors import ConflictError

RUN = """\
from dft_plugin.config.refusals import without_traceback
from dft_plugin.errors import ConflictError

def main():
    without_traceback("a_host")
    raise ConflictError(["`key`: it is in the way. Remove it."])

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def python(tmp_path):
    (tmp_path / "a_host").mkdir()
    (tmp_path / "a_host" / "__init__.py").touch()
    (tmp_path / "a_host" / "run.py").write_text(RUN)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])

    def run(*words, **environment):
        environment = {**os.environ, "PYTHONPATH": path, **environment}
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )

    return run


SHORT = "dft: `key`: it is in the way. Remove it.\n"


def test_a_hosts_program_ends_in_the_message(python):
    done = python("-m", "a_host.run")
    assert (done.returncode, done.stderr) == (1, SHORT)


def test_so_does_a_file_of_the_host_that_a_launcher_starts(python):
    # Of a package that is not loaded nobody knows the folder.
    assert python("a_host/run.py").stderr.startswith("Traceback")
    with_package = RUN.replace("def main", "import a_host\n\ndef main")
    python("-c", f"open('a_host/run.py', 'w').write({with_package!r})")
    assert python("a_host/run.py").stderr == SHORT


def test_so_does_its_command(python, tmp_path):
    info = tmp_path / "a_host-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-host\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[console_scripts]\na-host = a_host.run:main\n")
    command = "from a_host.run import main\nmain()\n"
    (tmp_path / "a-host").write_text(command)
    (tmp_path / "mine").write_text(command)
    assert python("a-host").stderr == SHORT
    assert python("mine").stderr.startswith("Traceback")


def test_a_script_of_the_users_shows_the_line_of_his(python, tmp_path):
    (tmp_path / "train.py").write_text("from a_host.run import main\nmain()\n")
    done = python("train.py")
    assert "train.py" in done.stderr
    assert done.stderr.endswith("ConflictError: `key`: it is in the way. Remove it.\n")


def test_who_catches_it_gets_it_and_other_errors_are_as_ever(python, tmp_path):
    caught = "try:\n        main()\n    except ValueError as error:\n        print(error)"
    (tmp_path / "a_host" / "catching.py").write_text(RUN.replace("    main()\n", f"    {caught}\n"))
    assert python("-m", "a_host.catching").stdout == "`key`: it is in the way. Remove it.\n"
    (tmp_path / "a_host" / "other.py").write_text(RUN.replace("raise Conf", "raise KeyError('mine')\n    raise Conf"))
    done = python("-m", "a_host.other")
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("KeyError: 'mine'\n")


def test_the_traceback_can_be_had(python):
    assert python("-m", "a_host.run", **{SWITCH: "1"}).stderr.startswith("Traceback")


def test_in_our_own_processes_nothing_is_changed():
    before = sys.excepthook
    without_traceback("a_host")
    assert sys.excepthook is before


class Shows(Host):
    name: ClassVar[str] = "shows"
    show_function: ClassVar[str] = "a_shown_host:show"


LAUNCH = Launch("sft.yaml", [], Settings(name="nll"))


@pytest.fixture
def show(tmp_path, monkeypatch):
    def write(body):
        (tmp_path / "a_shown_host.py").write_text(f"def show(launch, columns):\n    {body}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "a_shown_host", raising=False)

    return write


@pytest.mark.parametrize(
    ("body", "todo"),
    [
        ('raise ValueError("Your setup doesn\'t support bf16/gpu.")', "Type the same with `bf16=false` behind it"),
        ("raise OSError('no such model')", "Change the config, or put KEY=VALUE behind it"),
    ],
)
def test_a_host_that_refuses_its_config_is_one_line_with_what_to_type(show, body, todo):
    show(body)
    with pytest.raises(ConflictError) as caught:
        Shows().show_trainer(LAUNCH, ())
    first, last = str(caught.value).splitlines()
    assert first.startswith("shows stopped while it made its trainer: ")
    assert last == f"{todo}; {SWITCH}=1 shows where."
    assert caught.value.__cause__ is not None


def test_an_error_in_a_line_of_ours_stays_what_it_is(show):
    show("from dft_plugin.config.files import read; read(None)")
    with pytest.raises(AttributeError):
        Shows().show_trainer(LAUNCH, ())


def test_a_refusal_of_ours_stays_what_it_is(show):
    show("from dft_plugin.errors import ConflictError; raise ConflictError(['mine'])")
    with pytest.raises(ConflictError, match=r"^mine$"):
        Shows().show_trainer(LAUNCH, ())
