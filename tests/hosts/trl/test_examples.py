"""Every example is a config that TRL's own parser takes, and that we accept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from trl.cli.accelerate_config import resolve_accelerate_config_argument
from trl.scripts.sft import make_parser

from dft_plugin.cli.checking import check
from dft_plugin.config.plugins import build_catalogue
from dft_plugin.objectives import DFT

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "example_configs" / "trl").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
class TestExample:
    def test_it_opens_with_the_command_that_runs_it(self, path):
        first = path.read_text().splitlines()[0]
        assert re.match(rf"# dft train example_configs/trl/{path.name}( \w+=\w+)*$", first)

    def test_trls_parser_takes_every_key_but_ours_and_accelerates(self, path, monkeypatch):
        # bfloat16, TRL's default, is refused where there is neither a GPU nor this.
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        words = ["--config", str(path), "--use_cpu", "true"]
        *_, rest = make_parser().parse_args_and_config(words, return_remaining_strings=True)
        unknown = set(rest[::2]) - {"--loss"}
        assert unknown <= {"--accelerate_config"}
        if unknown:
            assert Path(resolve_accelerate_config_argument(rest)[1]).is_file()

    def test_we_recognise_it_and_find_no_conflict(self, path):
        report = check(path)
        assert (report.host.name, report.obstacles()) == ("trl", [])
        plan = build_catalogue().plan(report.settings)
        assert plan.objective == DFT()

    def test_its_keys_are_written_once(self, path):
        keys = re.findall(r"^(\w+):", path.read_text(), re.M)
        assert len(keys) == len(set(keys)) == len(yaml.safe_load(path.read_text()))
