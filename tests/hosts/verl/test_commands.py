"""verl's own programs, as a user starts them: `loss` on the command line or in a config, on one rank or two."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("verl")

from omegaconf import OmegaConf
from safetensors.torch import load_file
from support import counted, ray_on_cpu, tiny
from support.verl_runs import DFT, FULL, ON, PLATFORM, command, logged, python, train, words

from dft_plugin.errors import ConflictError
from dft_verl import autoload

pytestmark = pytest.mark.host

SAVED = {"checkpoint.save_contents": "[model,optimizer,extra,hf_model]", "data.micro_batch_size_per_gpu": 4}
WHOLE = "checkpoints/global_step_2/huggingface/model.safetensors"


def assert_same(home, done, expected):
    """What a command said, logged and saved is what a run in this process came to."""
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("dft: loss") == 1, "one start-up line"
    assert ON in done.stderr
    for mine, theirs in zip(
        [entry for entry in logged(home) if "train/loss" in entry], expected.training_logs, strict=True
    ):
        for key in ("train/loss", "train/grad_norm", "dft/nll", "dft/tokens", "dft/mean_prob"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5), key
    weights = load_file(home / WHOLE)
    for folder in ((home / WHOLE).parent, (home / WHOLE).parents[1]):
        recorded = json.loads((folder / "dft_loss.json").read_text())
        assert (recorded["in_words"], recorded["step"]) == ("dft(alpha=1.0, floor=0.0)", 2)
    assert tiny.max_gap(weights, expected.after) < 1e-6


def test_two_ranks_are_one(home):
    expected = train(*words(**DFT))
    done = command(home, *words(**DFT, **SAVED), ranks=2)
    assert_same(home, done, expected)
    counted.assert_agree(home / "checkpoints", [{"step": at + 1, **one} for at, one in enumerate(logged(home))])


@pytest.mark.full
def test_rays_trainer_sends_the_loss_to_its_workers(home):
    """Two of them; the driver, which logs, has no model."""
    expected = train(*words(**DFT))
    workers = {"trainer.n_gpus_per_node": 2, "data.val_files": "held-out.parquet"}
    with ray_on_cpu.folder() as environment:
        done = command(home, *words(**DFT, **SAVED, **workers), module="verl.trainer.sft_trainer_ray", **environment)
    assert_same(home, done, expected)
    (validation,) = [entry for entry in logged(home) if "val/loss" in entry]
    assert validation["val/dft/nll"] > 1
    steps = [{"step": at + 1, **one} for at, one in enumerate(one for one in logged(home) if "train/loss" in one)]
    counted.assert_agree(home / "checkpoints", steps)


def test_dft_train_takes_a_users_config_and_ranks(home):
    expected = train(*words(**DFT))
    config = {"defaults": ["sft_trainer_engine", "_self_"], "loss": {"name": "nll"}}
    for key, value in {**FULL, **SAVED, "trainer.n_gpus_per_node": 1}.items():
        place = config
        *groups, last = key.lstrip("+").split(".")
        for group in groups:
            place = place.setdefault(group, {})
        # Braces as hydra takes them are no YAML.
        place[last] = yaml.safe_load(str(value).replace(":", ": ")) if isinstance(value, str) else value
    (home / "run.yaml").write_text(yaml.safe_dump(config))
    done = python(home, "-m", "dft_plugin.cli", "train", "run.yaml", "loss=dft")
    assert_same(home, done, expected)


def test_an_installation_that_is_broken_stops_a_run_that_has_loss(home):
    """verl notes at DEBUG that a plugin cannot be imported; ours can, whatever else of us cannot."""
    broken = home / "broken"
    broken.mkdir()
    (broken / "pluggy.py").write_text("raise ImportError('pluggy is gone')\n")
    path = f"{broken}:{PLATFORM}"
    done = command(home, *words(**DFT), PYTHONPATH=path)
    assert done.returncode != 0
    assert "dft: the config has `loss`, and dft-plugin cannot be imported (ImportError: pluggy is gone)" in done.stderr
    assert "Nothing was trained. Reinstall it" in done.stderr
    assert not (home / "log.jsonl").exists()


def program_of(file):
    """A program below `hydra.main`, of a file."""
    names = {"__file__": str(file), "__name__": "__main__"}
    exec("def program(config):\n    return sorted(config)", names)
    return names["program"]


def test_other_programs_of_verls_refuse_loss_and_foreign_ones_are_left_alone():
    import hydra
    import verl

    own = program_of(Path(verl.__file__).parent / "trainer" / "main_ppo.py")
    assert hydra.main.watched_for_dft
    assert autoload.prepared(own)(OmegaConf.create({"algorithm": {}})) == ["algorithm"]
    foreign = autoload.prepared(program_of("/elsewhere/app.py"))
    assert foreign(OmegaConf.create({"loss": {"kind": "huber"}})) == ["loss"]
    with pytest.raises(ConflictError, match="`loss` was given to main_ppo, which has losses of its own"):
        autoload.prepared(own)(OmegaConf.create({"loss": "dft"}))
    recipe = autoload.prepared(program_of("/recipe/dapo.py"))
    with pytest.raises(ConflictError, match="`loss` was given to dapo, which has losses of its own"):
        recipe(OmegaConf.create({"loss": "dft", "actor_rollout_ref": {}}))


def test_a_trainer_is_taken_over_once_and_so_is_a_copy_or_a_class_below_it(monkeypatch):
    from dft_verl import trainer

    made = []

    def prepare(one, config):
        made.append(config["loss"])
        one.dft_training = SimpleNamespace(require_built=lambda: None)
        return one.dft_training

    class Plain:
        def __init__(self, config):
            self.config = config

        def _build_engine(self): ...

    class Below(Plain):
        def __init__(self, config):
            super().__init__(config)

    monkeypatch.setattr(trainer, "prepare", prepare)
    for kind in (Plain, Plain, Below):
        program = program_of("/elsewhere/sft.py")
        program.__globals__["SFTTrainer"] = kind
        assert autoload.prepared(program) is program
    Below({"loss": "dft"})
    assert made == ["dft"]
    Plain({"loss": "nll"})
    assert made == ["dft", "nll"]
    assert Plain({}).config == {}
    assert made == ["dft", "nll"]


@pytest.mark.full
def test_reinforcement_learning_is_refused_by_its_own_program(home):
    done = command(home, "+loss=dft", module="verl.trainer.main_ppo")
    assert done.returncode != 0
    assert "`loss` was given to main_ppo, which has losses of its own and would ignore it." in done.stderr


@pytest.mark.full
def test_lora_on_two_ranks_logs_what_one_does(home):
    given = {**DFT, "model.lora_rank": 4, "model.lora_alpha": 8, "data.micro_batch_size_per_gpu": 4}
    one, two = [], []
    for ranks, into in ((1, one), (2, two)):
        done = command(home, *words(**given), ranks=ranks)
        assert done.returncode == 0, done.stderr[-4000:]
        into += [entry for entry in logged(home) if "train/loss" in entry]
        (home / "log.jsonl").unlink()
    assert len(one) == 2
    assert [entry["dft/nll"] for entry in two[:1]] == pytest.approx([entry["dft/nll"] for entry in one[:1]], rel=1e-5)


@pytest.mark.full
def test_sequence_parallel_counts_each_target_once(home):
    """Two ranks share each sequence; log p comes back whole."""
    shared = {**DFT, "engine.ulysses_sequence_parallel_size": 2, "model.use_remove_padding": True}
    done = command(home, *words(**shared), ranks=2)
    if done.returncode != 0 and "flash" in done.stderr:
        pytest.skip("verl's sequence parallelism wants flash-attention, which wants a GPU")
    expected = train(*words(**DFT))
    assert [e["dft/tokens"] for e in logged(home)] == [e["dft/tokens"] for e in expected.training_logs]
