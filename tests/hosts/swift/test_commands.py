"""`dft train`, after `dft autoload enable` the unmodified `swift sft` and `swift pt`, and the documented door."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file
from support import tiny

from dft_plugin import autoload
from dft_plugin.errors import SettingsError
from dft_swift import run

pytest.importorskip("swift")

from support import swift_runs
from swift.cli.main import parse_yaml_args

import dft_swift

pytestmark = pytest.mark.host

ON = "dft: loss dft(alpha=1.0, floor=0.0) is on for Qwen2ForCausalLM (Seq2SeqTrainer)"
SAVED = {"save_strategy": "steps", "save_steps": 2}
HALVED = {"per_device_train_batch_size": 2, "gradient_checkpointing": True}
TWO_RANKS = {"NPROC_PER_NODE": "2"}


@pytest.fixture
def folder(home, tmp_path):
    """Write a config into an empty folder whose name has a space; returns the folder."""

    def make(name="sft.yaml", **changes):
        place = tmp_path / "a run"
        place.mkdir(exist_ok=True)
        given = {**swift_runs.config(home, place / "out"), **SAVED, **changes}
        (place / name).write_text(json.dumps(given) if name.endswith(".json") else yaml.safe_dump(given))
        return place

    return make


@pytest.fixture(scope="module")
def expected(home, tmp_path_factory):
    """The same run in this process: float64 loss of the first step, and the weights after two."""

    def train(main="sft_main", **changes):
        given = swift_runs.config(home, tmp_path_factory.mktemp("here") / "out", **changes)
        return swift_runs.train(given, "dft", main=main)

    texts = {"dataset": [str(home / "texts.jsonl")]}
    return {"full": train(), "lora": train(**swift_runs.LORA), "pt": train("pretrain_main", **texts)}


def assert_trained(done, out, wanted, on=ON):
    """It trained our loss, on all ranks, to the weights that one process in this process gets."""
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count(on) == 1, "one start-up line, not one for each rank"
    logs = swift_runs.history(out)
    assert logs[0]["loss"] == pytest.approx(wanted.expected, rel=1e-6)
    assert [entry["dft/tokens"] for entry in logs] == [entry["dft/tokens"] for entry in wanted.logs]
    assert [entry["dft/nll"] for entry in logs] == pytest.approx([x["dft/nll"] for x in wanted.logs], rel=1e-6)
    (saved,) = (out / "checkpoint-2").glob("*model.safetensors")
    after = {key.replace(".default", ""): value for key, value in wanted.after.items()}
    assert tiny.max_gap(load_file(saved), after) < 1e-6


def test_dft_train_trains_the_loss_of_the_yaml(folder, expected):
    place = folder(loss="dft")
    before = (place / "sft.yaml").read_text()
    done = swift_runs.command("train", "sft.yaml", cwd=place, script="dft")
    assert_trained(done, place / "out", expected["full"])
    assert (place / "sft.yaml").read_text() == before


def test_dft_train_takes_json_overrides_and_env_and_starts_two_ranks_that_train_what_one_does(folder, expected):
    place = folder("my sft.json", loss="nll", **swift_runs.LORA, **HALVED, ENV=TWO_RANKS, learning_rate=0.5)
    words = ("loss=dft", "learning_rate=1.0", f"output_dir={place}/another out", "report_to=[none]")
    done = swift_runs.command("train", "my sft.json", *words, cwd=place, script="dft")
    assert_trained(done, place / "another out", expected["lora"])


def test_the_unmodified_swift_sft_trains_the_loss_of_its_command_line(autoloaded, folder):
    """An option of ours follows; in the YAML stands another loss. The last word holds, as everywhere in ms-swift."""
    place = folder(loss={"name": "dft", "alpha": 0.5})
    done = swift_runs.command("sft", "sft.yaml", "--loss.alpha", "0", cwd=place)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "loss dft(alpha=0" in done.stderr.replace("alpha=0.0", "alpha=0")
    first, _ = swift_runs.history(place / "out")
    assert first["dft/loss"] == pytest.approx(first["dft/nll"], rel=1e-6)


def test_the_unmodified_swift_pt_starts_two_ranks_that_train_what_one_does(autoloaded, folder, home, expected):
    place = folder(loss="dft", dataset=[str(home / "texts.jsonl")], **HALVED)
    done = swift_runs.command("pt", "sft.yaml", cwd=place, environment=TWO_RANKS)
    assert_trained(done, place / "out", expected["pt"])


def test_without_our_line_the_unmodified_command_trains_as_ever(autoloaded, folder):
    place = folder()
    done = swift_runs.command("sft", "sft.yaml", cwd=place)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "dft: loss" not in done.stderr
    assert not any(key.startswith("dft/") for entry in swift_runs.history(place / "out") for key in entry)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sft", "dft: `enable_dft_loss`: ms-swift's own DFT would take the place of ours"),
        ("rlhf", "dft: `loss`: `swift rlhf` trains a loss of its own. Train with `swift sft`, or leave out"),
    ],
    ids=["sft", "rlhf"],
)
def test_the_unmodified_command_refuses_what_is_in_the_way(command, said, autoloaded, folder):
    place = folder(loss="dft", enable_dft_loss=True, **({"rlhf_type": "dpo"} if command == "rlhf" else {}))
    done = swift_runs.command(command, "sft.yaml", cwd=place)
    assert done.returncode != 0
    assert said in done.stderr
    assert not list(place.glob("out/checkpoint-*"))


def test_without_autoload_the_unmodified_command_stops_at_the_unknown_key(folder):
    place = folder(loss="dft", ignore_args_error=True)
    done = swift_runs.command("sft", "sft.yaml", cwd=place, environment={autoload.SWITCH: "0"})
    assert done.returncode == 2
    assert "ambiguous option: --loss could match --loss_type" in done.stderr


def test_the_documented_door_needs_no_patch(folder, expected):
    plugin = f"{dft_swift.__path__[0]}/plugin.py"
    place = folder(external_plugins=[plugin], callbacks=["dft"], ENV={"DFT_LOSS": "{name: dft, alpha: 1.0}"})
    done = swift_runs.command("sft", "sft.yaml", cwd=place, environment={autoload.SWITCH: "0"})
    assert_trained(done, place / "out", expected["full"])


def test_what_a_launcher_of_ones_own_starts(folder, expected, capsys):
    """`accelerate launch -m dft_swift.run sft.yaml`, of which each rank runs this."""
    place = folder(loss="dft")
    run.main([str(place / "sft.yaml")])
    done = SimpleNamespace(returncode=0, stderr=capsys.readouterr().err)
    assert_trained(done, place / "out", expected["full"])


def test_without_a_loss_it_says_so(folder):
    with pytest.raises(SettingsError, match=r"no `loss:` was given\. Add the line `loss: dft` to the config\."):
        run.main([str(folder() / "sft.yaml")])


def test_check_tells_a_user_of_enable_dft_loss_what_moving_gains(folder):
    place = folder(enable_dft_loss=True)
    done = swift_runs.command("check", "sft.yaml", cwd=place, script="dft")
    assert done.returncode == 1
    assert "host      swift (4." in done.stdout
    assert "Add the line `loss: dft`." in done.stdout
    assert "Replace it by the line `loss: dft`. The weights after a step are the same, and you gain:" in done.stdout


def test_ids_of_tokens_stay_ids_on_the_way_through_its_command_line(folder):
    """It writes what stands after `loss:` as JSON, whose keys are texts; "5" is another token than the fifth."""
    from dft_swift import arguments

    loss = {"name": "dft", "weights": {"tokens": {5: 2.0, "b": 3.0}}}
    # Notes its path in the environment, which the command hands on.
    argv = [str(folder(loss=loss) / "sft.yaml"), "--loss.alpha", "0.7"]
    parse_yaml_args(argv)
    assert arguments.take(argv)[0] == {**loss, "alpha": 0.7}
    with pytest.raises(SettingsError, match="contradict each other"):
        arguments.take([*argv, "--loss", "nll"])


def test_values_of_its_own_options_that_look_like_ours_are_left_alone():
    from dft_swift import arguments

    theirs = ["--dataset", "a.jsonl", "loss.jsonl", "loss=b.jsonl", "--system", "loss=dft"]
    assert arguments.take(theirs) == (None, theirs)
    assert arguments.take(["--loss", "dft", *theirs]) == ("dft", theirs)
