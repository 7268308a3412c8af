"""`dft check`, `losses`, `hosts`, and what `dft train` refuses. Nothing here starts a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

from dft_plugin.config.installed import TESTED

pytestmark = pytest.mark.host

TRL = "model_name_or_path: m\ndataset_name: d\n"


@pytest.fixture
def dft(tmp_path):
    def run(*words, columns=200):
        return subprocess.run(
            [sys.executable, "-m", "dft_plugin.cli", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": str(columns)},
            check=False,
        )

    return run


@pytest.fixture
def config(tmp_path):
    def write(text, name="sft.yaml"):
        (tmp_path / name).write_text(text)
        return name

    return write


def test_check_says_what_will_be_on_and_writes_nothing(dft, config, tmp_path):
    path = config(TRL + "loss: dft\nloss_type: dft\n")
    done = dft("check", path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[2:] == [
        "loss      dft, kernel auto",
        "replaces  `loss: dft` wins over `loss_type: dft`",
        "hint      on with `dft train`; `trl sft` alone refuses the line",
        "result    the loss will be on",
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == [path]


def test_check_reports_every_problem_at_once_and_fails(dft, config):
    path = config(TRL + "loss: {name: dft, alhpa: 1, floor: 2}\nlabel_smoothing_factor: 0.1\n")
    done = dft("check", path, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["ok"] is False
    assert [problem.split(":")[0] for problem in report["problems"]] == ["`loss.alhpa`", "`loss.floor"]
    assert "Did you mean `alpha`?" in report["problems"][0]
    assert [conflict["key"] for conflict in report["conflicts"]] == ["label_smoothing_factor"]


def test_a_file_where_trl_takes_the_name_of_a_dataset_is_a_conflict(dft, config, tmp_path):
    path = config("model_name_or_path: m\ndataset_name: ./rows.jsonl\nloss: dft\n")
    assert dft("check", path).returncode == 0, "it may be a name on the hub"
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    done = dft("check", path)
    assert done.returncode == 1
    assert "Write `datasets: [{path: json, data_files: FILE}]` in its place" in done.stdout


BEST = "eval_strategy: steps\nload_best_model_at_end: true\n"
BY_NLL = "metric_for_best_model: eval_dft/nll\n"


@pytest.mark.parametrize(
    "keys",
    [
        BEST,
        BEST + "metric_for_best_model: eval_loss\n",
        "lr_scheduler_type: reduce_lr_on_plateau\n",
    ],
    ids=["best checkpoint", "by name", "plateau"],
)
def test_check_says_what_a_choice_by_the_weighted_loss_means(dft, config, keys):
    done = dft("check", config(TRL + "loss: dft\n" + keys))
    assert done.returncode == 0
    hint, _ = [line for line in done.stdout.splitlines() if line.startswith("hint ")]
    assert "is chosen by eval_loss, the weighted loss." in hint
    assert "`metric_for_best_model: eval_dft/nll` and `greater_is_better: false`" in hint


@pytest.mark.parametrize(
    "text",
    [
        "loss: nll\n" + BEST,
        "loss: dft\n",
        "loss: dft\n" + BEST + BY_NLL,
        "loss: dft\n" + BEST + BY_NLL + "greater_is_better: false\n",
        "loss: dft\n" + BEST + "metric_for_best_model: eval_dft/mean_prob\n",
    ],
    ids=["plain likelihood", "nothing chosen", "by the likelihood", "as the hint says", "by the probability"],
)
def test_check_has_nothing_to_say_of_a_choice_that_is_right(dft, config, text):
    report = json.loads(dft("check", config(TRL + text), "--json").stdout)
    assert (report["ok"], report["hints"], report["problems"]) == (True, [], [])


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (BY_NLL + "greater_is_better: true\n", "Set `greater_is_better: false`."),
        ("metric_for_best_model: eval_dft/tokens\n", "has no better or worse, so it cannot choose a checkpoint."),
    ],
    ids=["direction", "no direction"],
)
def test_a_choice_that_is_wrong_is_refused_by_check_and_by_train(dft, config, keys, says):
    path = config(TRL + "loss: dft\nlabel_smoothing_factor: 0.1\n" + BEST + keys)
    checked, trained = dft("check", path), dft("train", path)
    assert (checked.returncode, trained.returncode) == (1, 2)
    assert says in checked.stdout
    assert trained.stderr.startswith("dft: 2 problems:")
    assert says in trained.stderr


def test_overrides_reach_the_loss_and_the_host(dft, config):
    path = config(TRL + "loss: dft\n")
    done = dft("check", path, "loss.alpha=0.7", "label_smoothing_factor=0.1", "--json")
    report = json.loads(done.stdout)
    assert report["loss"]["options"] == {"alpha": 0.7}
    assert [conflict["key"] for conflict in report["conflicts"]] == ["label_smoothing_factor"]


def test_a_key_of_the_file_that_trl_has_not_is_named_and_one_of_accelerate_is_not(dft, config):
    keys = "lerning_rate: 1e-4\nlearning_rate: 1e-4\nnum_processes: 2\naccelerate_config: zero3\nbf16: false\n"
    hints = json.loads(dft("check", config(TRL + "loss: dft\n" + keys), "--json").stdout)["hints"]
    assert hints == ["`lerning_rate`: trl has no such key. Did you mean `learning_rate`?"]


def test_check_says_what_it_leaves_to_the_run(dft, config):
    loss = 'loss: {name: psft, always_learn: eos, weights: {column: ratio, tokens: {"</think>": 2.0}}}\n'
    done = dft("check", config(TRL + loss), columns=400)
    left = "the column `old_logp` of the data, the column `ratio` of the data, the token `eos`, the token `</think>`"
    assert f"hint      not looked for yet: {left}. The run does, and stops without it." in done.stdout
    assert "not looked for" not in dft("check", config(TRL + "loss: dft\n")).stdout
    path = dft("check", config(TRL + "use_peft: true\nloss: {name: prift, reference: colums}\n")).stdout
    assert "the reference `colums`, a path or a name of a model" in path


def test_an_override_may_name_another_loss(dft, config):
    report = json.loads(dft("check", config(TRL + "loss: dft\n"), "loss=nll", "--json").stdout)
    assert (report["ok"], report["loss"]["name"]) == (True, "nll")


def test_train_refuses_what_check_refuses(dft, config):
    done = dft("train", config(TRL + "loss: dfft\nlabel_smoothing_factor: 0.1\n"))
    assert done.returncode == 2
    assert done.stderr.startswith("dft: 2 problems:\n  - `loss`: `dfft` is not a known name. Did you mean `dft`?")
    assert "Traceback" not in done.stderr


def test_a_config_without_our_line_is_not_trained(dft, config):
    done = dft("train", config(TRL))
    assert done.returncode == 2
    assert done.stderr == "dft: sft.yaml has no `loss:`. Add the line `loss: dft`.\n"


@pytest.mark.parametrize("key", ["los", *(pytest.param(key, marks=pytest.mark.full) for key in ("Loss", "losss"))])
def test_a_misspelt_line_is_named(dft, config, key):
    says = f"sft.yaml has no `loss:`. Is `{key}` meant to be `loss`? Add the line `loss: dft`."
    assert says in dft("train", config(TRL + f"{key}: dft\n")).stderr


def test_a_config_that_no_host_recognises_is_an_error_that_lists_the_hosts(dft, config):
    done = dft("check", config("loss: dft\nmodel: m\n"))
    assert done.returncode == 2
    assert "sft.yaml is not recognised as a config of any host (known: " in done.stderr
    assert "Its keys are model. Choose with --host" in done.stderr


def test_host_chooses_where_the_keys_do_not_tell(dft, config):
    path = config("loss: dft\nmodel: m\n")
    assert dft("check", path, "--host", "trl").returncode == 0
    assert dft("check", path, "--host", "tlr").stderr == (
        "dft: --host tlr: no such host. Did you mean `trl`? Known: axolotl, llamafactory, swift, trl, unsloth, verl.\n"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- loss: dft\n", "sft.yaml holds a list; a config is a mapping of keys to values."),
        ("loss: [\n", "sft.yaml is not valid YAML:"),
        ("", "sft.yaml is empty. Give the path of the config that you train with."),
        ("# loss: dft\n", "sft.yaml is empty. Give the path of the config that you train with."),
    ],
)
def test_a_file_that_is_no_config_is_one_clear_error(dft, config, text, says):
    assert says in dft("check", config(text)).stderr


def test_a_missing_file_is_one_clear_error(dft):
    assert dft("check", "no.yaml").stderr == (
        "dft: no.yaml cannot be read (No such file or directory). Give the path of the config that you train with.\n"
    )


def test_an_override_that_is_no_pair_is_one_clear_error(dft, config):
    done = dft("check", config(TRL + "loss: dft\n"), "alpha")
    assert done.stderr == (
        "dft: override 'alpha' is not `key=value` (for example learning_rate=1e-4 or loss.alpha=0.7).\n"
    )


def test_json_is_a_config_too(dft, config):
    text = json.dumps({"model_name_or_path": "m", "dataset_name": "d", "loss": {"name": "dft", "floor": 0.1}})
    report = json.loads(dft("check", config(text, "sft.json"), "--json").stdout)
    assert report["loss"]["options"] == {"floor": 0.1}


def test_ids_and_texts_of_tokens_are_told_apart_in_json(dft, config):
    loss = 'loss: {always_learn: [eos, 5], weights: {tokens: {11: 2.0, "11": 0.5}}}\n'
    report = json.loads(dft("check", config(TRL + loss), "--json").stdout)
    assert report["loss"]["always_learn"] == ["eos", 5]
    assert report["loss"]["weights"]["tokens"] == [[11, 2.0], ["11", 0.5]]


def test_what_is_no_token_is_found_without_a_tokenizer(dft, config):
    loss = "loss: {always_learn: [eos, ends], weights: {tokens: {yes: 2.0}}}\n"
    problems = json.loads(dft("check", config(TRL + loss), "--json").stdout)["problems"]
    assert len(problems) == 2
    assert "'ends' is neither one of eos, special, added nor a token id" in problems[0]
    assert "True is neither an id nor a text; put quotes around" in problems[1]


def test_losses_lists_names_options_and_sources(dft):
    listed = dft("losses").stdout
    assert "arXiv 2508.05629" in listed
    assert "alpha (1.0)" in listed


def test_hosts_lists_versions_and_tested_range(dft):
    import trl

    lines = dft("hosts").stdout.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("trl ")]
    assert row == ["trl", trl.__version__, ">=1.15,<1.17", "dft-plugin:trl"]
    (row,) = [line.split() for line in lines if line.startswith("torch ")]
    assert row == ["torch", metadata.version("torch"), TESTED["torch"]]


def test_hosts_says_in_lines_to_copy_what_leaves_the_hosts_that_are_here_as_they_are(dft):
    import trl

    printed = dft("hosts", "axolotl", columns=40).stdout
    its_own = f"In an environment of its own, since this one has trl {trl.__version__}"
    # Markup would swallow the brackets.
    line = "pip install 'dft-plugin[axolotl]' 'axolotl>=0.19,<0.22'"
    assert printed == f"axolotl is not installed. {its_own}: {line}\n"
    assert dft("hosts", "axolot").stderr.startswith("dft: no host is called `axolot`. Did you mean `axolotl`?")


def test_hosts_names_all_that_is_not_here_in_one_line(dft):
    printed = dft("hosts").stdout
    assert (
        "\nNot installed: axolotl, llamafactory, swift, unsloth, verl. How to install one: dft hosts NAME\n" in printed
    )
    assert "Run: " not in printed
    assert "is not installed" not in printed


def test_hosts_as_json_holds_what_it_prints(dft):
    found = json.loads(dft("hosts", "--json").stdout)
    printed = dft("hosts").stdout
    for one in [*found["hosts"], *found["with"]]:
        assert one["tested"] in printed
        assert one["problem"] is None or f"\n{one['problem']}\n" in printed or one["installed"] is None
    (trl,) = [one for one in found["hosts"] if one["name"] == "trl"]
    assert (trl["problem"], trl["from"]) == (None, "dft-plugin:trl")
    assert trl["install"].startswith("pip install ")


def test_a_check_says_of_a_missing_host_what_leaves_the_others_as_they_are(dft, config):
    report = json.loads(dft("check", config("base_model: m\ndatasets: []\nloss: dft\n"), "--json").stdout)
    assert report["version_problem"].startswith("axolotl is not installed. In an environment of its own")


def test_check_refuses_a_loss_that_would_find_no_reference(dft, config):
    done = dft("check", config(TRL + "loss: asft\n"), columns=400)
    assert done.returncode == 1
    assert "`loss: asft` compares the model with a frozen reference, and this config trains all of it" in done.stdout
    assert "{name: asft, reference: copy}" in done.stdout
    assert "columns" not in done.stdout
    assert dft("check", config(TRL + "use_peft: true\nloss: asft\n")).returncode == 0
    assert dft("check", config(TRL + "loss: {name: asft, reference: copy}\n")).returncode == 0
    assert "or `reference: columns` where the data has" in dft("check", config(TRL + "loss: prift\n")).stdout


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ("{name: dft, first: {name: nll, for: 4}}", "`first` holds until step 4 and the run has 2 steps"),
        pytest.param(
            "{name: dft, alpha: {from: 0.0, to: 1.0, until: 5}}",
            "until step 5 and the run has 2 steps",
            marks=pytest.mark.full,
        ),
        pytest.param(
            "{name: dft, first: {name: nll, for: 0.8}}",
            "`first` holds until 80 % of the run and the run has 2 steps",
            marks=pytest.mark.full,
        ),
    ],
)
def test_check_knows_what_would_outlast_a_run_of_known_length(dft, config, loss, says):
    done = dft("check", config(f"{TRL}max_steps: 2\nloss: {loss}\n"))
    assert done.returncode == 1
    assert says in " ".join(done.stdout.split())
    assert dft("check", config(f"{TRL}max_steps: -1\nloss: {loss}\n")).returncode == 0
