"""`dft autoload` on a bad day: killed, several at once, without the package, beside another environment."""

from __future__ import annotations

import os
import signal
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import dft_plugin
from dft_plugin import autoload

TARGETS = {"a_host.config": "an_adapter"}
ROOT = Path(dft_plugin.__file__).parents[1]

ENABLE = """
import os, signal, sys
from pathlib import Path
from dft_plugin import autoload
folder = Path(sys.argv[1])
autoload.pth_path = lambda: folder / autoload.PTH
autoload.site_folders = lambda: [folder.resolve()]
"""


def enabling(folder, before="", **more):
    """Start a process that enables autoload in a folder."""
    code = f"{ENABLE}{before}\nautoload.enable({TARGETS})"
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], env=with_us(), **more)


def with_us(**more):
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


def starting(folder, code="print('started')"):
    """Run Python as it starts where this folder is one of its site-packages."""
    start = "import sys, site\nsys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'DftAutoload']\n"
    start += f"site.addsitedir({str(folder)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False)


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    "moment",
    [
        f"Path.replace = lambda *_: {KILL}",
        f"w = Path.write_text\nPath.write_text = lambda self, text, **how: (w(self, text[:40], **how), {KILL})",
    ],
    ids=["before it is moved", "half written"],
)
@pytest.mark.parametrize("before", [None, "# of an older version\n"])
def test_killed_while_it_writes(moment, before, tmp_path):
    path = tmp_path / autoload.PTH
    if before is not None:
        path.write_text(before)
    assert enabling(tmp_path, moment).wait(120) == -signal.SIGKILL
    assert (path.read_text() if path.exists() else None) == before
    started = starting(tmp_path)
    assert (started.returncode, started.stdout, started.stderr) == (0, "started\n", "")
    assert enabling(tmp_path).wait(120) == 0
    assert path.read_text() == autoload.pth_text(TARGETS, path)


def test_several_at_once(tmp_path):
    path = tmp_path / autoload.PTH
    started = [enabling(tmp_path) for _ in range(4)]
    said = []
    while any(process.poll() is None for process in started):
        said.append(starting(tmp_path, "print([type(f).__name__ for f in sys.meta_path].count('DftAutoload'))"))
    assert [process.wait() for process in started] == [0] * 4
    assert path.read_text() == autoload.pth_text(TARGETS, path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name], "nothing unfinished is left"
    assert {(one.returncode, one.stderr) for one in said} == {(0, "")}
    assert {one.stdout for one in said} <= {"0\n", "1\n"}


def test_python_starts_without_our_package(tmp_path):
    path = tmp_path / autoload.PTH
    path.write_text(autoload.pth_text(TARGETS, path))
    code = "sys.modules['dft_plugin'] = None\nimport json, decimal\nprint(type(sys.meta_path[0]).__name__)"
    done = starting(tmp_path, code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "DftAutoload\n", "")


def test_of_two_environments_one_is_left_alone(tmp_path):
    pythons = []
    for name in ("one", "other"):
        venv.EnvBuilder(with_pip=False, symlinks=True).create(tmp_path / name)
        pythons.append(tmp_path / name / "bin" / "python")
    shared = os.pathsep.join([with_us()["PYTHONPATH"], *site.getsitepackages()])

    def run(python, *words):
        environment = {**os.environ, "PYTHONPATH": shared}
        return subprocess.run([python, *words], capture_output=True, text=True, check=False, env=environment)

    done = run(pythons[0], "-m", "dft_plugin", "autoload", "enable")
    assert done.returncode == 0, done.stderr
    count = "import sys; print([type(f).__name__ for f in sys.meta_path].count('DftAutoload'))"
    assert [run(python, "-c", count).stdout for python in pythons] == ["1\n", "0\n"]
    assert run(pythons[1], "-m", "dft_plugin", "autoload", "disable").returncode == 0
    assert run(pythons[0], "-c", count).stdout == "1\n"
    written = [one.relative_to(tmp_path).parts[0] for one in tmp_path.rglob(autoload.PTH)]
    assert written == ["one"]
