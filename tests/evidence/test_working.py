"""Going through runs: the order, the clock, pauses, and runs that fail."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass

from evidence import working
from evidence.claims import claim
from evidence.rows import Rows
from evidence.working import Work


@dataclass(frozen=True)
class Made:
    """A run that takes no time."""

    key: str
    part = "core"

    def execute(self, scale, folder, wait):
        wait()
        if self.key == "bad":
            raise ValueError("no such thing")
        accuracy = {"taught@0": 1.0, "taught@1": 1.0}
        return {"key": self.key, "part": self.part, "accuracy": accuracy, "seconds": [0.0]}


class Three:
    def pending(self, rows, part):
        return [Made(key) for key in ("a", "bad", "c") if key not in rows]


def work(folder, say=lambda text: None, pause_file=None):
    return Work(Three(), None, Rows(folder / "rows"), folder, None, pause_file, say)


def test_a_run_that_fails_is_said_and_keeps_no_other_from_being_made(tmp_path):
    said = []
    first = work(tmp_path, said.append)
    assert first.go_on(60.0) == 2
    assert list(first.rows.all()) == ["a", "c"]
    assert first.failed == {"bad"}
    assert "bad: failed: ValueError: no such thing" in said
    assert work(tmp_path).go_on(60.0) == 0


def test_no_run_begins_once_the_time_is_over(tmp_path):
    assert work(tmp_path).go_on(0.0) == 0
    assert not Rows(tmp_path / "rows").all()


def test_nothing_is_computed_while_the_pause_file_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(working, "PAUSE_SECONDS", 0.02)
    pause = tmp_path / "quiet"
    pause.touch()
    paused = work(tmp_path, pause_file=pause)
    thread = threading.Thread(target=paused.go_on, args=(60.0,))
    thread.start()
    time.sleep(0.3)
    assert not paused.rows.all()
    pause.unlink()
    thread.join(timeout=20)
    assert list(paused.rows.all()) == ["a", "c"]


def test_a_run_that_another_process_makes_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(working, "RETRY_SECONDS", 0.02)
    name = hashlib.sha256(b"c").hexdigest()[:24]
    with claim(tmp_path / "locks" / name) as mine:
        assert mine
        waiting = work(tmp_path)
        assert waiting.go_on(0.5) == 1
        assert list(waiting.rows.all()) == ["a"]
    assert work(tmp_path).go_on(60.0) == 1


def test_three_at_once_make_each_run_once(tmp_path, monkeypatch):
    monkeypatch.setattr(working, "RETRY_SECONDS", 0.02)
    each = [work(tmp_path) for _ in range(3)]
    made: list[int] = []
    threads = [threading.Thread(target=lambda one=one: made.append(one.go_on(20.0))) for one in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "rows" / "core.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert sum(made) == 2
