"""`dft reference` with LLaMA-Factory: a step on its `tokenized_path` is one with the reference beside the training."""

from __future__ import annotations

import pytest
import yaml
from support import tiny

pytest.importorskip("llamafactory")

from datasets import load_from_disk
from support import factory

from dft_plugin.cli import beforehand
from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

MASS = {"name": "prift", "by": "mass", "threshold": 0.3}


def command(home, tmp_path, loss, **changes):
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump({**factory.arguments(home, tmp_path / "out", **changes), "loss": loss}))
    return beforehand.run(beforehand.Asked(path, (), None, tmp_path / "made", (), 7))


def copied(text):
    """The lines that it says to copy into the config."""
    return yaml.safe_load(text.split("Train with\n", 1)[1].rsplit("\nin ", 1)[0])


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("by", ["prob", "mass"])
def test_a_step_is_that_of_the_same_reference_beside_the_training(by, packing, home, tmp_path, capsys):
    loss = MASS if by == "mass" else {"name": "prift", "by": "prob"}
    changes = {"packing": packing, "max_steps": 1}
    assert command(home, tmp_path, {**loss, "reference": "copy"}, **changes) == 0
    keys = copied(capsys.readouterr().out)
    assert keys == {"tokenized_path": str(tmp_path / "made" / "tokenized"), "loss": {**loss, "reference": "columns"}}
    here = factory.arguments(home, tmp_path / "out", **changes)
    one = factory.train({**here, "tokenized_path": keys["tokenized_path"]}, keys["loss"])
    two = factory.train(here, {**loss, "reference": "copy"})
    assert one.moved > 1e-3
    assert one.losses[0] == pytest.approx(two.losses[0], rel=1e-5, abs=factory.ROUNDED)
    assert one.logs[0]["dft/mean_weight"] == pytest.approx(two.logs[0]["dft/mean_weight"], rel=1e-5)
    assert tiny.max_gap(one.after, two.after) < 1e-5


def test_rows_to_evaluate_are_written_in_llama_factorys_words(home, tmp_path):
    assert command(home, tmp_path, "psft", val_size=0.1) == 0
    made = load_from_disk(str(tmp_path / "made" / "tokenized"))
    assert {name: len(rows) for name, rows in made.items()} == {"train": 36, "validation": 4}
    row = made["validation"][0]
    assert len(row["old_logp"]) == len(row["input_ids"])


def test_neat_packing_is_refused(home, tmp_path):
    with pytest.raises(ConflictError, match=r"`neat_packing: true`: .* Set `neat_packing: false`"):
        command(home, tmp_path, "prift", neat_packing=True)
    assert not (tmp_path / "made").exists()
