"""MLflow and TensorBoard themselves: the loss stands among the settings of the run that they show. W&B: in Axolotl."""

from __future__ import annotations

import json

import pytest
from support import training
from transformers.integrations import TensorBoardCallback

from dft_plugin import activate

pytestmark = [
    pytest.mark.host,
    # Each warns of itself, and of what it stands on.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error:::dft_"),
]

LOSS = {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 2}, "always_learn": [7]}
SETTINGS = {
    "dft_loss": "dft(alpha=0->1 until step 2, floor=0.0)",
    "dft_loss_name": "dft",
    "dft_loss_alpha": "from 0.0, to 1.0, until 2",
    "dft_loss_floor": 0.0,
    "dft_loss_always_learn": "7",
    "dft_loss_kernel": "auto",
}
COMPUTED = {
    "dft_loss_computed_path": "hidden states",
    "dft_loss_computed_kernel": "chunked",
    "dft_loss_computed_rows": "plain",
    "dft_loss_computed_why": "",
}


def train(out, tracker, evaluate=True):
    try:
        trainer = training.sft_trainer(out, max_steps=2, report_to=tracker)
        named = {"loss_type": f"dft-plugin: {SETTINGS['dft_loss']}"}
    except ModuleNotFoundError:
        trainer = training.trainer(out, max_steps=2, report_to=tracker)
        named = {}
    activate(trainer, LOSS)
    if evaluate:
        # The tracker begins with it, and by then it is known how the loss is computed.
        trainer.evaluate()
    trainer.train()
    assert "to_dict" not in vars(trainer.args), "a checkpoint pickles them"
    return {**SETTINGS, **named}


def ours(found):
    return {key: value for key, value in found.items() if "dft_loss" in key or key == "loss_type"}


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    # Without a database in the skinny package.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    expected = train(tmp_path / "out", "mlflow")
    (run,) = mlflow.search_runs(output_format="list")
    assert ours(run.data.params) == {key: str(value) for key, value in expected.items()}
    assert ours(run.data.tags) == COMPUTED


def test_tensorboard(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    expected = train(tmp_path / "out", "tensorboard", evaluate=False)
    made = reading.EventAccumulator(str(next((tmp_path / "out").rglob("events*")).parent))
    made.Reload()

    def text(tag):
        return json.loads(made.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0])

    assert ours(text("args")) == expected
    assert text("dft_loss") == COMPUTED


def test_a_tracker_that_fails_does_not_stop_the_run(tmp_path, caplog):
    class Broken(TensorBoardCallback):
        def __init__(self):
            self._SummaryWriter = self.logging_dir = None

        @property
        def tb_writer(self):
            return Writer()

        @tb_writer.setter
        def tb_writer(self, value):
            pass

    class Writer:
        def add_text(self, name, text, step=0):
            if name == "dft_loss":
                raise OSError("the disk is full")

        def __getattr__(self, name):
            return lambda *args: None

    trainer = training.trainer(tmp_path, max_steps=1)
    trainer.add_callback(Broken())
    activate(trainer)
    trainer.train()
    assert "TensorBoardCallback did not take how the loss is computed: the disk is full" in caplog.text
