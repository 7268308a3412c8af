"""Faults of verl 0.9.1 itself, without dft-plugin: what docs/upstream.md lists, shown."""

from __future__ import annotations

from importlib.metadata import requires

import pytest

pytest.importorskip("verl")

import torch
from support.verl_runs import command, logged, python, train, words
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData

pytestmark = pytest.mark.host


def test_the_last_position_of_a_sequence_is_scored_by_the_first_token_of_the_next():
    """losses.py, sft_loss: the mask of all sequences is rolled as if they were one; so is what they predict."""
    from verl.workers.utils.losses import sft_loss

    masks = [torch.tensor([1, 1, 1]), torch.tensor([1, 1])]
    data = TensorDict({"loss_mask": torch.nested.as_nested_tensor(masks, layout=torch.jagged)}, batch_size=[2])
    data["dp_size"], data["batch_num_tokens"] = NonTensorData(1), NonTensorData(1)
    logp = torch.tensor([-1.0, -1.0, -100.0, -1.0, -100.0])
    log_probs = torch.nested.nested_tensor_from_jagged(logp, torch.tensor([0, 3, 5]))
    loss, _ = sft_loss(None, {"log_probs": log_probs}, data)
    assert loss.item() == 203, "3 would be right: the two that are -100 predict nothing"


def test_log_p_of_bfloat16_logits_is_bfloat16():
    """torch_functional.py, logprobs_from_logits_v2, where flash-attention is missing: the sum has two digits."""
    from verl.utils.torch_functional import logprobs_from_logits

    made = logprobs_from_logits(torch.randn(4, 9).bfloat16(), torch.tensor([1, 2, 3, 4]))
    assert made.dtype == torch.bfloat16


@pytest.mark.full
def test_a_loss_that_verl_does_not_know_is_ignored_where_plugins_are_off(home):
    """Hydra takes any key that is added; nothing says that nobody reads it."""
    given = words(**{"+loss": "dft", "trainer.total_training_steps": 1})
    done = command(home, *given, VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode == 0
    (entry,) = [entry for entry in logged(home) if "train/loss" in entry]
    assert entry["train/loss"] > 1, "the likelihood was trained"


@pytest.mark.full
def test_a_run_that_is_resumed_at_the_end_of_an_epoch_trains_nothing_more(home):
    """sft_trainer.py, fit: the loader goes on at the end of an epoch that is over, so that the next one is empty."""
    given = {"trainer.total_epochs": 2, "trainer.total_training_steps": 6, "trainer.resume_mode": "auto"}
    first = train(*words(**{**given, "trainer.total_training_steps": 3}))
    assert len(first.steps) == 3, "an epoch"
    assert train(*words(**given)).steps == []


@pytest.mark.full
def test_a_finished_run_that_is_started_again_makes_one_step_more(home):
    """sft_trainer.py, fit: whether a step was the last is asked after it."""
    given = words(**{"trainer.total_epochs": 2, "trainer.total_training_steps": 4, "trainer.resume_mode": "auto"})
    assert len(train(*given).steps) == 4
    assert len(train(*given).steps) == 1
    assert (home / "checkpoints" / "global_step_5").is_dir()


@pytest.mark.full
@pytest.mark.parametrize("package", ["uvicorn", "fastapi"])
def test_its_trainer_imports_what_a_plain_installation_lacks(package, home):
    """Declared for an extra only, and imported at the top of modules that every trainer imports."""
    (line,) = [line for line in requires("verl") if line.split(";")[0].strip() == package]
    assert "extra ==" in line
    code = f"import sys; sys.modules[{package!r}] = None; import verl.trainer.sft_trainer"
    done = python(home, "-c", code)
    assert f"import of {package} halted" in done.stderr
    assert "verl/workers/rollout/utils.py" in done.stderr


def test_a_plugin_that_cannot_be_imported_is_passed_over_in_silence(home):
    made = home / "broken-1.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (made / "entry_points.txt").write_text("[verl.plugins]\nbroken = broken_plugin\n")
    (home / "broken_plugin.py").write_text("print('read')\nraise ImportError('gone')\n")
    done = python(home, "-c", "import verl")
    assert done.returncode == 0, done.stderr
    assert "read" in done.stdout
    assert "broken" not in done.stderr
