"""Which YAML is Axolotl's; needs no Axolotl."""

from __future__ import annotations

import pytest

from dft_axolotl.host import AxolotlHost, problems_of
from dft_axolotl.reading import checked
from dft_plugin.config.hosts import Choice
from dft_plugin.config.settings import Settings
from dft_plugin.errors import SettingsError
from dft_plugin.testing import check_host

CONFIG = {"base_model": "m", "datasets": [{"path": "d", "type": "alpaca"}]}


def test_the_host_conforms():
    check_host(AxolotlHost(), CONFIG, foreign={"model_name_or_path": "m", "dataset_name": "d"})


def test_a_pretraining_config_is_axolotls_too():
    assert AxolotlHost().recognise({"base_model": "m", "pretraining_dataset": "d"})


def test_replaces_names_axolotls_own_forms_of_the_loss():
    host = AxolotlHost()
    assert host.replaces(CONFIG, Settings(name="dft")) == ["the model's cross-entropy"]
    named = host.replaces({**CONFIG, "chunked_cross_entropy": True}, Settings(name="dft"))
    assert named == ["chunked_cross_entropy"]


def test_what_works_otherwise_than_expected_is_a_hint_and_not_replaced():
    config = {**CONFIG, "plugins": ["axolotl.integrations.llm_compressor.LLMCompressorPlugin"]}
    assert AxolotlHost().cautions(CONFIG) == []
    assert AxolotlHost().cautions(config)[0].startswith("llm_compressor:")
    assert AxolotlHost().replaces(config, Settings(name="dft")) == ["the model's cross-entropy"]


def test_autoload_registers_the_plugin_and_nothing_without_loss():
    from types import ModuleType

    from dft_axolotl.autoload import patch

    seen = []
    module = ModuleType("axolotl.cli.config")
    module.prepare_plugins = lambda cfg: seen.append(dict(cfg))
    patch(module)
    module.prepare_plugins({"base_model": "m"})
    assert seen == [{"base_model": "m"}]


def test_autoload_refuses_a_line_without_a_value():
    from types import ModuleType

    from dft_axolotl.autoload import patch

    module = ModuleType("axolotl.cli.config")
    module.prepare_plugins = lambda cfg: pytest.fail("the run goes on")
    patch(module)
    with pytest.raises(SettingsError, match=r"`loss:` has no value\. Write `loss: dft`"):
        module.prepare_plugins({"base_model": "m", "loss": None})


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        ({"loss": None}, "`loss:` has no value. Write `loss: dft`"),
        (
            {"loss": "dft", "loss.alpha": 0.5},
            "`loss.alpha` is a key that nobody reads. Write `loss: {name: dft",
        ),
    ],
)
def test_the_plugin_refuses_what_axolotl_would_drop(cfg, says):
    with pytest.raises(SettingsError) as refused:
        checked(cfg)
    assert says in str(refused.value)


def test_the_name_in_the_file_stays_where_axolotl_puts_an_option_in_its_place(tmp_path):
    """`--loss__alpha 0.5` makes a mapping of `loss: eaft` that has lost its name."""
    path = tmp_path / "config.yml"
    path.write_text("loss: eaft\n")
    cfg = {"loss": {"alpha": 0.5}, "axolotl_config_path": str(path)}
    assert checked(cfg) == {"name": "eaft", "alpha": 0.5}
    assert checked({**cfg, "loss": {"name": "dft", "alpha": 0.5}}) == {"name": "dft", "alpha": 0.5}
    assert checked({"loss": "dft"}) == "dft"
    assert checked({"base_model": "m"}) is None


def test_the_plugin_reads_the_file_as_the_commands_do(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text("loss: eaft\nloss: dft\n")
    with pytest.raises(SettingsError, match="`loss` stands there twice, first in line 1"):
        checked({"loss": "dft", "axolotl_config_path": path})
    assert checked({"axolotl_config_path": path}) is None, "without the line a file is Axolotl's own affair"


BEST = {"load_best_model_at_end": True}
EVALUATES = {**BEST, "val_set_size": 0.1, "eval_steps": 10, "save_steps": 20}
PER_EPOCH = {**BEST, "val_set_size": 0.1, "evals_per_epoch": 4, "saves_per_epoch": 1}


@pytest.mark.parametrize(
    ("change", "chooses"),
    [
        ({}, False),
        (EVALUATES, True),
        (PER_EPOCH, True),
        ({**EVALUATES, "val_set_size": 0, "test_datasets": [{"path": "t"}]}, True),
        ({key: EVALUATES[key] for key in EVALUATES if key not in BEST}, False),
        ({**EVALUATES, "load_best_model_at_end": False}, False),
        ({**EVALUATES, "save_steps": 15}, False),
        ({**EVALUATES, "val_set_size": 0}, False),
        ({**EVALUATES, "load_best_model_at_end": False, "early_stopping_patience": 3}, True),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, True),
        ({"lr_scheduler": "cosine"}, False),
        ({"metric_for_best_model": "eval_dft/nll"}, True),
    ],
)
def test_axolotl_loads_the_best_checkpoint_where_it_saves_at_steps_that_it_evaluates(change, chooses):
    choice = AxolotlHost().chooses_by({**CONFIG, **change})
    assert choice == (Choice(change.get("metric_for_best_model"), None) if chooses else None)


def test_a_wrong_choice_of_the_best_is_reported_with_everything_else():
    config = {
        **CONFIG,
        **EVALUATES,
        "loss": {"alhpa": 1},
        "use_eaft": True,
        "metric_for_best_model": "eval_dft/tokens",
    }
    problems = problems_of(config)
    assert len(problems) == 3
    assert "has no better or worse" in problems[-1]
