"""What we do to a machine without being asked: nothing; and what a config can make us do: nothing but train."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dft_plugin.config.reading import load
from dft_plugin.errors import SettingsError

ROOT = Path(__file__).parent.parent

WATCH = """
import os, sys
LOOKED_FOR = (
    "socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request", "subprocess.Popen", "os.system",
    "os.exec", "os.fork", "os.posix_spawn", "os.mkdir", "os.remove", "os.rename", "os.symlink", "pickle.find_class",
)
def watch(event, args):
    seen = event in LOOKED_FOR
    if event == "open":
        path, mode, flags = args
        writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        seen = bool(writes) and isinstance(path, (str, bytes)) and os.fsdecode(path) != os.devnull
    # Python tries once whether its folder for temporary files can be written to.
    if seen and sys._getframe(1).f_code.co_name != "_get_default_tempdir":
        os.write(2, f"SEEN {event} {args!r}\\n".encode())
sys.addaudithook(watch)
"""

DFT = "import sys; from dft_plugin.cli import main; sys.argv[1:] = "

ASKED = {
    "import": "import dft_plugin, dft_axolotl, dft_llamafactory.hooks, dft_swift.hooks, dft_verl.autoload",
    "check": DFT + "['check', 'sft.yaml', '--host', 'trl']; main()",
    "losses": DFT + "['losses', 'eaft']; main()",
    "a write": "open('x', 'w')",
    "a process": "import subprocess; subprocess.run(['true'])",
}
UNHARMLESS = ("a write", "a process")
"""That the watch sees something at all. What torch does when it is imported is not ours: none of these needs it."""


@pytest.mark.parametrize("asked", ASKED)
def test_nothing_is_sent_started_or_written(asked, tmp_path):
    (tmp_path / "sft.yaml").write_text("model_name_or_path: m\ndataset_name: d\nloss: dft\n")
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "DFT_PLUGIN_AUTOLOAD": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", WATCH + ASKED[asked]], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    seen = [line for line in ran.stderr.splitlines() if line.startswith("SEEN")]
    assert bool(seen) == (asked in UNHARMLESS), seen
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch made']",
        "!!python/object/new:os.system ['touch made']",
        "!!python/name:os.system",
        "!!python/module:os",
        '{name: dft, alpha: !!python/object/apply:eval [\'open("made", "w")\']}',
        "[*a, &a !!python/object/apply:os.mkdir ['made']]",
    ],
)
def test_yaml_runs_no_code(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sft.yaml"
    for text in (f"model: m\nloss: {value}\n", f"model: m\nother: {value}\nloss: dft\n"):
        path.write_text(text)
        with pytest.raises(SettingsError, match=r"sft\.yaml"):
            load(path)
        with pytest.raises(SettingsError):
            load(path, [f"loss={value}"])
    assert not Path("made").exists()


WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_and_get_no_more_rights_than_they_need(path):
    text = path.read_text()
    actions = re.findall(r"uses: (\S+)", text)
    assert actions
    assert all(re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action) for action in actions)
    assert "permissions:\n  contents: read\n" in text
    assert "secrets." not in text
    assert "pull_request_target" not in text
