"""README's config trains, with no more than model, data and folder of its own, and what a CPU needs."""

from __future__ import annotations

import re

import pytest
import yaml

pytest.importorskip("axolotl")

from importlib.metadata import version

from packaging.version import Version
from support import readme
from support.axolotl_runs import assert_same, command, train

pytestmark = pytest.mark.host


@pytest.mark.newest
def test_the_config_trains_dft_by_the_command_that_stands_beside_it(home):
    config = yaml.safe_load(readme.blocks()["Axolotl"])
    if Version(version("axolotl")) < Version("0.21"):
        (line,) = re.findall(r"0\.19 and 0\.20 need one line more:\n`(.+)`", readme.PAGE.read_text(encoding="utf-8"))
        config |= yaml.safe_load(line)
    (data,) = config["datasets"]
    config |= {
        "base_model": "models/llama",
        "datasets": [{**data, "path": "data/chat.jsonl", "ds_type": "json"}],
        "output_dir": "out",
        "max_steps": 2,
        "bf16": False,
    }
    (home / "config.yml").write_text(yaml.safe_dump(config))
    here = train(home / "config.yml")
    assert [entry["loss"] for entry in here.logs] == pytest.approx(here.expected, rel=1e-6)
    assert_same(home, command(home, "axolotl", "train", "config.yml"), here, "out")
