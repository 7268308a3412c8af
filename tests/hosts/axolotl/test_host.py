"""Which YAML is Axolotl's; needs no Axolotl."""

from __future__ import annotations

from dft_axolotl.host import AxolotlHost
from dft_plugin.config.settings import Settings
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


def test_autoload_registers_the_plugin_and_nothing_without_loss():
    from types import ModuleType

    from dft_axolotl.autoload import patch

    seen = []
    module = ModuleType("axolotl.cli.config")
    module.prepare_plugins = lambda cfg: seen.append(dict(cfg))
    patch(module)
    module.prepare_plugins({"base_model": "m"})
    assert seen == [{"base_model": "m"}]
