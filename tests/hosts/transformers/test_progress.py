"""What a person sees while a run goes on: the table of a notebook, and warnings above the bar of a terminal."""

from __future__ import annotations

import io
import logging
from contextlib import contextmanager, redirect_stderr

import pytest
from support import training
from tqdm import std, tqdm
from transformers import TrainerCallback

from dft_plugin import activate
from dft_plugin.saying import warn

pytestmark = pytest.mark.host


class Reader(TrainerCallback):
    """Keeps the table as it is shown after each event."""

    def __init__(self, shows):
        self.shows, self.table = shows, None

    def on_log(self, *args, **kwargs):
        if self.shows.training_tracker is not None:
            self.table = [list(row) for row in self.shows.training_tracker.inner_table]

    on_evaluate = on_log

    @property
    def rows(self):
        head, *rows = self.table
        return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.fixture
def notebook(tmp_path):
    pytest.importorskip("IPython")
    from transformers.utils.notebook import NotebookProgressCallback

    def made(**changes):
        trainer = training.trainer(tmp_path, max_steps=4, **changes)
        shows = NotebookProgressCallback()
        trainer.add_callback(shows)
        attached = activate(trainer)
        reader = Reader(shows)
        trainer.add_callback(reader)
        return trainer, reader, attached

    return made


def test_a_notebooks_table_has_our_statistics_of_each_log(notebook):
    trainer, reader, _ = notebook(logging_steps=2)
    trainer.train()
    logged = training.train_logs(trainer)
    assert [row["Step"] for row in reader.rows] == [2, 4]
    for row, entry in zip(reader.rows, logged, strict=True):
        assert row["Training Loss"] == entry["loss"]
        for key in ("dft/nll", "dft/mean_prob", "dft/effective_tokens"):
            assert row[key] == entry[key]
    assert "dft/perplexity" not in reader.table[0]


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_and_of_each_evaluation_beside_those_of_the_training(notebook, strategy):
    # Of an epoch, 24 rows are six steps.
    trainer, reader, _ = notebook(eval_strategy=strategy, eval_steps=2, per_device_train_batch_size=12)
    trainer.train()
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    first = "Step" if strategy == "steps" else "Epoch"
    assert [row[first] for row in reader.rows] == ([2, 4] if strategy == "steps" else [1, 2])
    for row, entry in zip(reader.rows, evaluated, strict=True):
        (trained,) = [log for log in training.train_logs(trainer) if log["step"] == entry["step"]]
        assert row["Validation Loss"] == entry["eval_loss"]
        assert row["eval_dft/nll"] == entry["eval_dft/nll"]
        assert row["dft/nll"] == trained["dft/nll"]
        assert not [name for name in row if name.startswith("Dft")]


def test_an_evaluation_by_itself_is_as_it_was_and_its_metrics_are_whole(notebook):
    trainer, _, _ = notebook(eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert trainer.evaluate()["eval_dft/nll"] > 0


def test_detached_it_is_transformers_own_table_again(notebook):
    trainer, reader, attached = notebook(logging_steps=2)
    attached.detach()
    assert not {"on_log", "on_evaluate"} & vars(reader.shows).keys()
    trainer.train()
    assert reader.table[0] == ["Step", "Training Loss"]


def screen(text):
    """The lines that a terminal shows of what was written to it: a carriage return goes back to the start."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


class Stream(io.StringIO):
    """A terminal, or a file."""

    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@contextmanager
def stderr(is_terminal):
    """What is written to stderr, by the logging of a user, too."""
    written = Stream(is_terminal)
    handler = logging.StreamHandler(written)
    logging.getLogger().addHandler(handler)
    try:
        with redirect_stderr(written):
            yield written
    finally:
        logging.getLogger().removeHandler(handler)


either = pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "file"])


@either
def test_a_warning_stands_on_a_line_of_its_own(is_terminal):
    # A terminal says how wide it is.
    with stderr(is_terminal) as written, tqdm(total=10, mininterval=0, ncols=80) as bar:
        bar.update(3)
        bar.refresh()
        warn(logging.getLogger("dft_plugin.test"), "dft: look at %s", "this")
        bar.update(1)
        bar.refresh()
        during = [line for line in screen(written.getvalue()) if "3/10" not in line]
    assert during[0] == "dft: look at this"
    assert len(during) == 2
    assert "4/10" in during[1]


@either
def test_a_run_warns_on_a_line_of_its_own(is_terminal, tmp_path, monkeypatch):
    monkeypatch.setattr(std, "_screen_shape_wrapper", lambda: lambda _: (80, 20))
    trainer = training.trainer(tmp_path, disable_tqdm=False)
    activate(trainer)
    with stderr(is_terminal) as written:
        trainer.train()
    assert "0/3" in written.getvalue()
    (warned,) = [line for line in screen(written.getvalue()) if "prior is weak" in line]
    assert warned.startswith("dft: the targets' mean probability")
    assert warned.endswith("wrong chat template or mask.")


@either
def test_without_a_bar_there_is_no_line_more(is_terminal):
    with stderr(is_terminal) as written:
        warn(logging.getLogger("dft_plugin.test"), "dft: look")
    assert written.getvalue() == "dft: look\n"
