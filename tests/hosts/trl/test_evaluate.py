"""`dft evaluate` with TRL: of each checkpoint what its run has logged there, and what float64 makes of it."""

from __future__ import annotations

import json
import shutil

import pytest
from support import evaluated, tiny, trl_runs
from transformers.integrations import TensorBoardCallback

from dft_plugin.config import handover
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.runs.logs import load

pytestmark = pytest.mark.host

RAMP = {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 2}}
KINDS = {"full": "", "lora": trl_runs.LORA}
EVALUATES = "eval_strategy: steps\neval_steps: 1\neval_on_start: true\nper_device_eval_batch_size: 5\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of either kind that evaluate the model they begin with and after each step, and save each; made once."""
    from dft_trl import run

    made = {}

    def folder_of(kind):
        if kind in made:
            return made[kind]
        folder = made[kind] = trl_runs.make_folder(tmp_path_factory.mktemp(kind))
        rows = (folder / "data" / "train.jsonl").read_text().splitlines()
        (folder / "data" / "test.jsonl").write_text("\n".join(rows[7:18]))
        trl_runs.write(folder, RAMP, KINDS[kind] + EVALUATES)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            run.main([*handover.words(build_catalogue().settings(RAMP)), "--config", "sft.yaml"])
        return folder

    return folder_of


@pytest.fixture(params=["lora"])
def home(request, runs, monkeypatch):
    """The folder of a run, and the working directory."""
    folder = runs(request.param)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["dft"])
    return folder


def logged(home):
    state = json.loads((home / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    return {entry["step"]: entry for entry in state["log_history"] if "eval_loss" in entry}


@pytest.mark.parametrize(("home", "step"), [("full", 0), ("full", 2), ("lora", 1)], indirect=["home"])
def test_it_says_of_a_checkpoint_what_its_run_has_logged_and_writes_and_tells_nothing(home, step, monkeypatch):
    monkeypatch.setattr(TensorBoardCallback, "on_log", lambda *_, **__: pytest.fail("a tracker was told"))
    before, words = evaluated.contents(home), ["sft.yaml", "report_to=tensorboard"]
    found = evaluated.evaluate(*words, *(["--checkpoint", f"out/checkpoint-{step}"] if step else []))
    evaluated.assert_logged(found["sets"]["eval"], logged(home)[step])
    assert found["sets"]["eval"]["dft/alpha"] == step / 2
    assert (found["host"], found["notes"]) == ("trl", [])
    assert evaluated.contents(home) == before


def test_numbers_are_those_of_the_models_own_logits(home):
    found = evaluated.evaluate("sft.yaml", "loss={name: dft, alpha: 0.5}", "eval_strategy=no")
    rows = [(row["input_ids"], row["labels"]) for row in trl_runs.rows(home)][7:18]
    evaluated.assert_right(found["sets"]["eval"], tiny.llama(), rows, 0.5)


def test_another_loss_than_was_trained_is_named_and_one_that_nobody_names_is_that(home):
    out = home / f"found-{home.name}.json"
    other = evaluated.evaluate("sft.yaml", "loss=nll", "--checkpoint", "out/checkpoint-1", "--out", out)
    (note,) = other["notes"]
    assert "was trained with dft(alpha=0->1 until step 2, floor=0.0), and is evaluated with nll" in note
    assert json.loads(out.read_text()) == other
    assert (other["step"], other["rows"]) == (1, {"eval": 11})
    assert other["trained_with"] == "dft(alpha=0->1 until step 2, floor=0.0)"
    run = load(out)
    assert run.series("eval_dft/nll") == [(1, other["sets"]["eval"]["dft/nll"])], "dft compare reads it"
    assert run.loss == other["trained_with"]
    assert "is there already" in evaluated.refused("sft.yaml", "--out", out)
    out.unlink()
    (home / "plain.yaml").write_text((home / "sft.yaml").read_text().replace("loss:", "run_name: x # loss:"))
    same = evaluated.evaluate("plain.yaml", "--checkpoint", "out/checkpoint-1")
    (home / "plain.yaml").unlink()
    assert same["loss"] == "dft(alpha=0->1 until step 2, floor=0.0)"
    assert same["sets"]["eval"]["dft/nll"] == other["sets"]["eval"]["dft/nll"]
    evaluated.assert_logged(same["sets"]["eval"], logged(home)[1])


def test_weights_without_a_record_are_named_and_a_schedule_needs_their_step(home):
    bare = shutil.copytree(home / "out" / "checkpoint-1", home / "bare", dirs_exist_ok=True)
    for name in ("dft_loss.json", "trainer_state.json"):
        (bare / name).unlink()
    assert "after which step it was saved" in evaluated.refused("sft.yaml", "--checkpoint", "bare")
    found = evaluated.evaluate("sft.yaml", "loss={name: dft, alpha: 0.5}", "--checkpoint", "bare")
    assert "bare has no record of its loss" in found["notes"][0]
    evaluated.assert_logged(found["sets"]["eval"], logged(home)[1])
    shutil.rmtree(bare)


def test_what_cannot_be_evaluated_is_refused_with_what_to_do(home, monkeypatch):
    refused = evaluated.refused
    assert "no split `held`" in refused("sft.yaml", "dataset_test_split=held")
    inside = r"neither a model (config.json) nor an adapter (adapter_config.json)"
    assert inside in (said := refused("sft.yaml", "--checkpoint", "data"))
    assert said.endswith("Give the folder of a checkpoint, a model or an adapter.")
    assert "nowhere is not there" in refused("sft.yaml", "--checkpoint", "nowhere")
    assert "`learning_rat`" in refused("sft.yaml", "learning_rat=1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "runs in one process" in refused("sft.yaml")


def test_an_adapter_needs_a_model_that_it_fits(home):
    of_all = evaluated.refused("sft.yaml", "use_peft=false", "--checkpoint", "out/checkpoint-1")
    assert "is an adapter, and with this config all of LlamaForCausalLM is trained" in of_all
    asked = "loss={name: prift, reference: start}"
    said = evaluated.refused("sft.yaml", asked, "--checkpoint", "out/checkpoint-1")
    assert "`reference: start` is the model as it was when training began" in said
    tiny.llama(intermediate_size=56).save_pretrained(home / "other")
    trl_runs.training.tokenizer().save_pretrained(home / "other")
    said = evaluated.refused("sft.yaml", "model_name_or_path=other", "--checkpoint", "out/checkpoint-1")
    shutil.rmtree(home / "other")
    assert "this adapter does not fit the model of the config" in said
    evaluated.assert_logged(
        evaluated.evaluate("sft.yaml", "lora_alpha=99", "lora_r=2", "--checkpoint", "out/checkpoint-1")["sets"][
            "eval"
        ],
        logged(home)[1],
    )
