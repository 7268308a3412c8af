"""What was trained stands beside what is saved, in the plain Trainer and in TRL; resuming with another loss stops."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from support import tiny, training

from dft_plugin import activate
from dft_plugin.config import record as records
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.errors import ConflictError

pytestmark = pytest.mark.host

MAKE = {"transformers": training.trainer, "trl": training.sft_trainer}
LOSS = {"name": "dft", "alpha": 0.5, "always_learn": ["eos", 7]}
SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


@pytest.fixture(params=MAKE)
def host(request):
    if request.param == "trl" and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed")
    return request.param


def made(host, out, model=None, **changes):
    trainer = MAKE[host](out, model, **{**SAVES, **changes})
    if host == "transformers":
        trainer.processing_class = training.tokenizer()
    return trainer


def read(folder):
    return json.loads((folder / "dft_loss.json").read_text())


def state(folder):
    return json.loads((folder / "trainer_state.json").read_text())["stateful_callbacks"]["DftLoss"]["attributes"]


def assert_recorded(found, host, step, trainer):
    assert found["loss"] == {**LOSS, "floor": 0.0, "kernel": "auto"}
    assert found["tokens"] == {"always_learned": "2, 7"}
    assert (found["step"], found["max_steps"], found["before"]) == (step, 2, [])
    version = importlib.metadata.version(host)
    assert found["host"] == {"name": host, "version": version, "trainer": type(trainer).__name__}
    assert found["written_by"].startswith("dft-plugin ")
    (only,) = found["computed"]
    assert only["from_step"] == 1
    return only


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_all_that_is_saved_says_what_was_trained(host, kind, tmp_path):
    trainer = made(host, tmp_path, training.lora() if kind == "lora" else None, logging_steps=1)
    activate(trainer, LOSS)
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    trainer.save_state()
    for folder, step in (("checkpoint-1", 1), ("checkpoint-2", 2), ("", 2), ("elsewhere", 2)):
        only = assert_recorded(read(tmp_path / folder), host, step, trainer)
        frozen = kind == "lora"
        assert only["path"] == "hidden states"
        assert only["kernel"] == ("blocked" if frozen else "chunked")
        assert only.get("rows") == (None if frozen else "plain")
    for folder, step in (("checkpoint-1", 1), ("", 2)):
        assert state(tmp_path / folder) == read(tmp_path / folder) | {"step": step}
    weights = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    assert (tmp_path / "elsewhere" / weights).is_file(), "it stands beside the weights"


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_card_that_a_host_writes_names_the_loss(host, kind, tmp_path):
    trainer = made(host, tmp_path, training.lora() if kind == "lora" else None)
    activate(trainer, LOSS)
    trainer.train()
    trainer.create_model_card()
    for folder in [tmp_path, *([tmp_path / "checkpoint-2"] if kind == "lora" else [])]:
        card = ModelCard.load(folder / "README.md")
        assert {"dft-plugin", "loss:dft"} <= set(card.data.tags)
        assert "The loss was `dft(alpha=0.5, floor=0.0)`" in card.text
        assert card.text.count("<!-- dft-plugin: end -->") == 1
    if host == "trl":
        card = ModelCard.load(tmp_path / "README.md")
        assert {"trl", "sft"} <= set(card.data.tags)
        after = card.text.split("This model was trained with SFT.")[1]
        assert after.index("The loss was `dft") < after.index("### Framework versions")


def test_pickled_arguments_say_it_and_can_be_read_without_us(host, tmp_path):
    trainer = made(host, tmp_path, **({"loss_type": "dft"} if host == "trl" else {}))
    before = trainer.args.to_dict()
    activate(trainer, LOSS)
    trainer.train()
    raw = tmp_path / "checkpoint-2" / "training_args.bin"
    assert b"dft_plugin.hf" not in raw.read_bytes()
    saved = torch.load(raw, weights_only=False)
    assert saved.dft_loss["alpha"] == 0.5
    assert not hasattr(trainer.args, "dft_loss")
    if host == "trl":
        assert saved.loss_type == "dft-plugin: dft(alpha=0.5, floor=0.0)"
        from trl import SFTTrainer

        saved.output_dir = str(tmp_path / "again")
        with pytest.raises(ValueError, match=r"Invalid `loss_type` dft-plugin: dft\(alpha=0\.5"):
            SFTTrainer(tiny.llama(), saved, train_dataset=trainer.train_dataset, processing_class=training.tokenizer())
        assert before["loss_type"] == "dft", "TRL's own, which ours replaces"
        assert trainer.args.loss_type == "nll"


def test_a_named_adapter_has_its_record_where_it_is_saved(tmp_path):
    model = training.lora()
    model.add_adapter("other", training.lora_config())
    model.set_adapter("other")
    trainer = made("transformers", tmp_path, model)
    activate(trainer)
    trainer.train()
    assert read(tmp_path / "checkpoint-2" / "other") == read(tmp_path / "checkpoint-2")


# transformers 4 doubts the clock where checkpoints come within a second.
@pytest.mark.filterwarnings("ignore:mtime may not be reliable")
def test_weights_alone_and_the_best_have_it_too(tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 1}
    trainer = made("transformers", tmp_path, save_only_model=True, max_steps=3, **changes)
    activate(trainer)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert read(best)["step"] == int(best.name.split("-")[1])
    assert read(tmp_path)["step"] == 3
    assert not (best / "optimizer.pt").exists()


def test_what_changes_in_the_run_is_kept_as_it_was(tmp_path):
    """`blocked` does not do what `eaft` needs, and hands over when its time has come."""
    trainer = made("transformers", tmp_path, training.lora(), max_steps=4, save_steps=2)
    activate(trainer, {"name": "gift", "first": {"name": "nll", "for": 2}})
    trainer.train()
    assert [one["kernel"] for one in read(tmp_path / "checkpoint-2")["computed"]] == ["blocked"]
    first, then = read(tmp_path)["computed"]
    assert (first["from_step"], first["kernel"]) == (1, "blocked")
    assert (then["from_step"], then["kernel"]) == (3, "chunked")
    assert "blocked holds no row of logits" in then["why"]


def test_a_model_that_must_make_its_logits_is_recorded_so(tmp_path):
    trainer = made("transformers", tmp_path)
    activate(trainer, {"name": "dft", "kernel": "logits"})
    trainer.train()
    assert read(tmp_path)["computed"] == [{"from_step": 1, "path": "logits", "rows": "plain", "why": "asked for"}]


def test_nothing_is_written_once_it_is_detached(host, tmp_path):
    trainer = made(host, tmp_path)
    activate(trainer).detach()
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert not list(tmp_path.rglob("dft_loss.json"))
    assert "dft-plugin" not in (tmp_path / "README.md").read_text()


def test_a_run_that_is_broken_off_has_said_what_it_was(tmp_path):
    """A host may save the model by itself then."""

    class Stops(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                raise KeyboardInterrupt

    trainer = made("transformers", tmp_path, save_strategy="no")
    activate(trainer, LOSS)
    trainer.add_callback(Stops())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert read(tmp_path)["step"] == 1


def test_a_model_of_another_run_keeps_its_record_until_it_is_overwritten(tmp_path):
    tiny.llama().save_pretrained(tmp_path)
    records.write(tmp_path, {"format": 1, "loss": {"name": "of another"}})
    trainer = made("transformers", tmp_path)
    activate(trainer)
    seen = []

    class Looks(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(read(tmp_path)["loss"]["name"])

    trainer.add_callback(Looks())
    trainer.train()
    assert seen == ["of another"] * 2
    assert read(tmp_path)["loss"]["name"] == "dft"


class Hub:
    """Stands where the hub does: what would be uploaded, by folder."""

    def __init__(self, monkeypatch):
        self.uploaded = []

        def upload_folder(*args, folder_path, ignore_patterns=(), **kwargs):
            place = Path(folder_path)
            self.uploaded.append({path.name: path.read_bytes() for path in place.iterdir() if path.is_file()})

        def create_repo(name, **kwargs):
            return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{name}")

        for owner in (huggingface_hub.HfApi, huggingface_hub, transformers.trainer):
            for name, function in (("upload_folder", upload_folder), ("create_repo", create_repo)):
                if hasattr(owner, name):
                    wrapped = function if owner is not huggingface_hub.HfApi else _method(function)
                    monkeypatch.setattr(owner, name, wrapped)


def _method(function):
    return lambda self, *args, **kwargs: function(*args, **kwargs)


def test_what_is_pushed_says_it(host, tmp_path, monkeypatch):
    hub = Hub(monkeypatch)
    trainer = made(host, tmp_path / "out", push_to_hub=True, hub_always_push=True)
    # A push in the background is waited for.
    trainer.push_in_progress = None
    monkeypatch.setattr(type(trainer), "_finish_current_push", lambda self: None)
    monkeypatch.setattr(transformers.trainer, "PushInProgress", lambda jobs: None)
    activate(trainer, LOSS)
    trainer.train()
    pushed = [json.loads(files["dft_loss.json"]) for files in hub.uploaded]
    assert [one["step"] for one in pushed] == [1, 2], "each save is pushed"
    assert {one["loss"]["alpha"] for one in pushed} == {0.5}
    trainer.push_to_hub()
    assert b"The loss was `dft" in hub.uploaded[-1]["README.md"]


@pytest.fixture
def trained(host, tmp_path):
    """A folder with checkpoint-1, and a function that goes on from it with a loss."""
    trainer = made(host, tmp_path, max_steps=1)
    activate(trainer, LOSS)
    trainer.train()

    def go_on(loss=LOSS, **changes):
        again = made(host, tmp_path, **changes)
        activate(again, loss)
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        return again

    return go_on


class TestResuming:
    def test_with_the_same_loss(self, trained, tmp_path, capsys):
        trained()
        found = read(tmp_path / "checkpoint-2")
        assert (found["before"], [one["from_step"] for one in found["computed"]]) == ([], [1])
        assert "checkpoint" not in capsys.readouterr().err

    def test_with_another_stops_before_the_first_step_and_says_both(self, trained, tmp_path):
        with pytest.raises(ConflictError) as error:
            trained({**LOSS, "alpha": 1.0})
        said = str(error.value)
        assert "trained with dft(alpha=0.5, floor=0.0), and this run would go on with dft(alpha=1.0" in said
        assert re.search(r"`alpha` was 0\.5 and is 1\.0.*resume: allow", said)
        assert not (tmp_path / "checkpoint-2").exists()

    def test_with_another_where_that_is_allowed(self, trained, tmp_path, capsys):
        trained({"name": "nll", "resume": "allow"})
        found = read(tmp_path / "checkpoint-2")
        (part,) = found["before"]
        assert (part["until_step"], part["loss"]["name"], found["loss"]["name"]) == (1, "dft", "nll")
        assert [one["from_step"] for one in found["computed"]] == [2]
        assert state(tmp_path / "checkpoint-2") == found
        assert "from step 1 on `name` was dft and is nll" in capsys.readouterr().err

    def test_without_a_record_it_is_named_and_goes_on(self, trained, tmp_path, capsys):
        place = tmp_path / "checkpoint-1"
        (place / "dft_loss.json").unlink()
        kept = json.loads((place / "trainer_state.json").read_text())
        del kept["stateful_callbacks"]["DftLoss"]
        (place / "trainer_state.json").write_text(json.dumps(kept))
        trained({**LOSS, "alpha": 1.0})
        assert f"{place} has no record of its loss" in capsys.readouterr().err
        assert read(tmp_path / "checkpoint-2")["before"] == [{"until_step": 1, "loss": None}]

    def test_with_a_record_that_is_damaged_or_newer(self, trained, tmp_path, capsys):
        place = tmp_path / "checkpoint-1"
        (place / "dft_loss.json").write_text("{")
        trained()
        assert "dft_loss.json" not in capsys.readouterr().err, "the state has it, too"
        shutil.rmtree(tmp_path / "checkpoint-2")
        kept = json.loads((place / "trainer_state.json").read_text())
        kept["stateful_callbacks"]["DftLoss"]["attributes"]["format"] = 99
        (place / "trainer_state.json").write_text(json.dumps(kept))
        for text, said in (("{", "is damaged"), ('{"format": 99}', "Upgrade")):
            (place / "dft_loss.json").write_text(text)
            with pytest.raises(ConflictError, match=said):
                trained()
        trained({**LOSS, "resume": "allow"})
        assert read(tmp_path / "checkpoint-2")["before"] == [{"until_step": 1, "loss": None}]

    def test_with_callbacks_restored(self, trained, tmp_path, caplog):
        trained(restore_callback_states_from_checkpoint=True)
        assert "DftLoss" not in caplog.text, "transformers would say that it is ignored"
        assert state(tmp_path / "checkpoint-2")["loss"]["alpha"] == 0.5


def test_a_checkpoint_of_ours_is_gone_on_from_without_us_and_then_has_no_record(host, tmp_path, capsys):
    trainer = made(host, tmp_path, max_steps=1)
    activate(trainer)
    trainer.train()
    again = made(host, tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert not (tmp_path / "checkpoint-2" / "dft_loss.json").exists()
    third = made(host, tmp_path, max_steps=3)
    activate(third, "nll")
    third.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "checkpoint-2 has no record of its loss" in capsys.readouterr().err


def test_the_loss_of_a_record_may_be_activated(tmp_path):
    trainer = made("transformers", tmp_path)
    attachment = activate(trainer, LOSS)
    trainer.train()
    catalogue = build_catalogue()
    again = catalogue.plan(catalogue.settings(read(tmp_path)["loss"]))
    assert again.objective == attachment.plan.objective
    assert again.rules == attachment.plan.rules
