"""`dft reference` with Axolotl: its own rows, and a step with them as with the reference beside the training."""

from __future__ import annotations

import pytest
import torch
import yaml
from support import tiny

pytest.importorskip("axolotl")

from support import axolotl_runs

from dft_plugin.cli import beforehand

pytestmark = pytest.mark.host

MASS = {"name": "prift", "by": "mass", "threshold": 0.3}
ONE_STEP = {"micro_batch_size": 48, "max_steps": 1, "dataset_prepared_path": "own"}


def command(path, out="made"):
    return beforehand.run(beforehand.Asked(path, (), None, path.parent / out, (), 7))


def copied(text):
    """The lines that it says to copy into the config."""
    return yaml.safe_load(text.split("Train with\n", 1)[1].rsplit("\nin ", 1)[0])


def train(home, **changes):
    run = axolotl_runs.train(axolotl_runs.write_config(home, "train.yml", **ONE_STEP | changes))
    return run.logs[0], run.weights


@pytest.mark.newest
def test_a_step_is_that_of_the_same_reference_beside_the_training(home, capsys):
    path = axolotl_runs.write_config(home, loss={**MASS, "reference": "copy"}, **ONE_STEP)
    assert command(path) == 0
    keys = copied(capsys.readouterr().out)
    assert keys["loss"] == {**MASS, "reference": "columns"}
    assert keys["datasets"] == [{"path": str(home / "made"), "split": "train", "type": None}]
    one, after_one = train(home, **keys)
    two, after_two = train(home, loss={**MASS, "reference": "copy"})
    assert 0.05 < one["dft/mean_weight"] < 0.95
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert one["dft/mean_weight"] == pytest.approx(two["dft/mean_weight"], rel=1e-6)
    assert tiny.max_gap(after_one, after_two) < 1e-5


def test_packed_rows_and_rows_to_evaluate(home, capsys):
    """Columns are of whole rows, and Axolotl packs them while it trains."""
    changes = {**axolotl_runs.PACKED, "val_set_size": 6, "dataset_prepared_path": "own", "max_steps": 1}
    path = axolotl_runs.write_config(home, loss={"name": "prift", "reference": "columns"}, **changes)
    assert command(path) == 0
    keys = copied(capsys.readouterr().out)
    assert keys["val_set_size"] == 0
    _, trainer = axolotl_runs.prepare(axolotl_runs.write_config(home, "train.yml", **{**changes, **keys}))
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (42, 6)
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model
    asked = {key: batch[key] for key in ("input_ids", "position_ids", "attention_mask") if key in batch}
    with torch.no_grad():
        logits = model(**asked).logits[:, :-1].double()
    labels = batch["labels"][:, 1:]
    first = batch["position_ids"][:, 1:] == 0
    kept = (labels != -100) & ~first
    expected = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0][kept]
    found = batch["dft_bits_ref_logp"].view(torch.float32)[:, 1:][kept]
    assert (len(found) > 20, int(first.sum()) > 1) == (True, True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
