"""What LLaMA-Factory itself gets wrong, without dft-plugin: what docs/upstream.md lists, shown."""

from __future__ import annotations

import pytest

pytest.importorskip("llamafactory")

from support import factory, tiny

pytestmark = pytest.mark.host

MOE = {"disable_gradient_checkpointing": True, "max_steps": 1, "learning_rate": 1e-3}


def of_router(home, out, **changes):
    """Train with a router's loss and without: how far apart weights and logged losses are."""
    config = factory.arguments(home, out, "moe", **{**MOE, **changes})
    with_it, without = (factory.train({**config, "moe_aux_loss_coef": share}) for share in (0.5, 1e-9))
    assert with_it.moved > 1e-5, "nothing was trained"
    return tiny.max_gap(with_it.after, without.after), with_it.losses[0] - without.losses[0]


def test_use_dft_loss_drops_the_loss_of_a_router(home, tmp_path):
    weights, loss = of_router(home, tmp_path / "stock")
    assert weights > 1e-3
    assert loss > 0.3
    assert of_router(home, tmp_path / "dft", use_dft_loss=True) == (0, 0)


def test_with_its_checkpointing_the_loss_of_a_router_has_no_gradient(home, tmp_path):
    """Which is on unless it is turned off; the loss is logged all the same."""
    weights, loss = of_router(home, tmp_path, disable_gradient_checkpointing=False)
    assert loss > 0.3
    assert weights < 1e-6


def test_beside_use_dft_loss_label_smoothing_changes_nothing(home, tmp_path):
    config = factory.arguments(home, tmp_path, use_dft_loss=True, max_steps=1)
    dft, asked = factory.train(config), factory.train({**config, "label_smoothing_factor": 0.1})
    assert asked.moved > 1e-4, "nothing was trained"
    assert tiny.max_gap(dft.after, asked.after) == 0
    assert asked.losses == dft.losses


def test_a_config_in_json_cannot_be_read(home, tmp_path, monkeypatch):
    from llamafactory.hparams.parser import read_args

    path = factory.write_config(tmp_path / "sft.json", **factory.arguments(home, tmp_path))
    monkeypatch.setattr("sys.argv", ["llamafactory-cli", str(path)])
    with pytest.raises(AttributeError, match="object has no attribute 'read'"):
        read_args()


def test_a_path_with_a_space_is_two_arguments_where_ranks_are_started(home, tmp_path):
    place = tmp_path / "a run"
    place.mkdir()
    factory.write_config(place / "my sft.yaml", **factory.arguments(home, place / "out", max_steps=1))
    done = factory.command("train", "my sft.yaml", cwd=place, environment={"FORCE_TORCHRUN": "1"})
    assert done.returncode != 0
    assert not (place / "out").exists()
