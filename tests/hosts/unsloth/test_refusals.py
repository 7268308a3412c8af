"""What of Unsloth's would keep the loss from taking effect: refused at the trainer, by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny, training
from transformers import Trainer
from unsloth.trainer import UnslothTrainer

from dft_plugin import activate
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import ConflictError
from dft_plugin.testing import check_host
from dft_trl.unsloth import UnslothHost

from .fast import full

pytestmark = pytest.mark.host

PAGE = Path(__file__).parents[3] / "docs" / "hosts" / "unsloth.md"


def hidden_states(trainer, monkeypatch):
    monkeypatch.setenv("UNSLOTH_RETURN_HIDDEN_STATES", "1")


def context_parallel(trainer, monkeypatch):
    # A field of Unsloth's SFTConfig on a GPU.
    trainer.args.context_parallel_size = 2


def tensor_parallel(trainer, monkeypatch):
    trainer.model.model._unsloth_tp = object()


REFUSED = {
    hidden_states: "UNSLOTH_RETURN_HIDDEN_STATES=1: Unsloth's models return hidden states in the place of logits, and "
    "no loss. An RL trainer may have left it behind: os.environ['UNSLOTH_RETURN_HIDDEN_STATES'] = '0'.",
    context_parallel: "context_parallel_size is 2: Unsloth splits sequences over ranks and counts their targets by "
    "itself, which was never run with this loss. Set it to 1.",
    tensor_parallel: "the model is tensor-parallel in Unsloth's own way (apply_tensor_parallel, UNSLOTH_TP_SIZE), "
    "which was never run with this loss. Load it whole.",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_is_in_the_way_is_refused_by_name_and_nothing_is_touched(change, tmp_path, monkeypatch):
    trainer = full(tmp_path)
    change(trainer, monkeypatch)
    before = dict(vars(trainer)), dict(vars(trainer.model))
    with pytest.raises(ConflictError) as caught:
        activate(trainer)
    assert str(caught.value) == REFUSED[change]
    assert (dict(vars(trainer)), dict(vars(trainer.model))) == before


def test_everything_is_named_at_once(tmp_path, monkeypatch):
    trainer = full(tmp_path)
    for change in REFUSED:
        change(trainer, monkeypatch)
    with pytest.raises(ConflictError) as caught:
        activate(trainer)
    assert all(problem in str(caught.value) for problem in REFUSED.values())


def trainers_of(name):
    """What Unsloth makes of TRL's trainers on a GPU: classes in a file of their own."""
    own = {"compute_loss": lambda self, *args, **kwargs: None, "__module__": f"Unsloth{name}"}
    written = type(f"_Unsloth{name}", (Trainer,), own)
    return type(f"Unsloth{name}", (written,), {"__module__": f"Unsloth{name}"})


def speculative():
    from unsloth_zoo.speculative.trainer import UnslothMTPTrainer

    return UnslothMTPTrainer


@pytest.mark.parametrize("make", [lambda: trainers_of("DPOTrainer"), speculative], ids=["written", "speculative"])
def test_unsloths_trainers_of_other_losses_are_refused_by_name(make):
    kind = make()
    users = type("Users", (kind,), {})
    for trainer in (kind.__new__(kind), users.__new__(users)):
        with pytest.raises(
            ConflictError, match=r"trains a loss of its own, that of Unsloth's _?Unsloth\w+Trainer, and"
        ):
            activate(trainer)


def test_unsloths_own_sft_trainer_is_taken(tmp_path):
    made = full(tmp_path)
    made.__class__ = UnslothTrainer
    activate(made)
    made.train()
    assert training.train_logs(made)[0]["dft/tokens"] > 0


YAML = "model: m\ntraining:\n  training_type: lora\nlora:\n  lora_r: 8\nloss: dft\n"


def test_the_command_refuses_the_line_and_the_check_says_what_to_do_instead(tmp_path):
    (tmp_path / "x.yaml").write_text(YAML)
    code = "import sys; from unsloth_cli.config import load_config; load_config(sys.argv[1])"
    theirs = subprocess.run(
        [sys.executable, "-c", code, "x.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert theirs.returncode != 0
    assert "unknown key 'loss' at the top level" in theirs.stderr
    ours = subprocess.run(
        [sys.executable, "-m", "dft_plugin.cli", "train", "x.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ours.returncode == 2
    assert (
        "`loss`: `unsloth train` refuses keys that are not its own. Train in Python: `import unsloth`" in ours.stderr
    )


def test_the_host_conforms_and_its_configs_are_nobody_elses():
    config = {"model": "m", "training": {"max_steps": 3}, "data": {"dataset": "d"}}
    for other in (
        {"model_name_or_path": "m", "dataset_name": "d"},
        {"model": {"path": "m"}, "data": {}, "trainer": {}},
    ):
        check_host(UnslothHost(), config, other)
    hosts = build_catalogue().hosts
    assert [name for name, entry in hosts.items() if entry.item.recognise(config)] == ["unsloth"]


def test_the_lines_of_the_page_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """With another model, and one step of it."""
    tiny.llama().save_pretrained(tmp_path / "model")
    training.tokenizer().save_pretrained(tmp_path / "model")
    rows = [training.as_text(row) for row in training.rows()]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    code = block.replace("unsloth/Qwen3-8B", "model").replace("load_in_4bit=True", "load_in_4bit=False")
    code = code.replace("SFTConfig(", "SFTConfig(max_steps=1, logging_steps=1, report_to='none', ")
    scope: dict = {}
    exec(compile(code, "docs/hosts/unsloth.md", "exec"), scope)
    assert "dft: loss dft" in capsys.readouterr().err
    assert training.train_logs(scope["trainer"])[0]["dft/tokens"] > 0
