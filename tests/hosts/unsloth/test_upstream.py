"""TRL 1.15, which Unsloth asks for, where there is no Triton: by itself, without Unsloth."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import pytest

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not version("trl").startswith("1.15."), reason="1.16 has another head"),
    pytest.mark.skipif(find_spec("triton") is not None, reason="it is missing where there is none"),
]

TRAINS = """
import pathlib, sys
from support import training
trainer = training.sft_trainer(pathlib.Path(sys.argv[1]), max_steps=1)
if sys.argv[2:]:
    from dft_plugin import activate
    activate(trainer)
trainer.train()
"""


def test_trl_1_15_trains_nothing_without_triton(tmp_path):
    def train(*words):
        given = [sys.executable, "-c", TRAINS, str(tmp_path), *words]
        there = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.run(given, capture_output=True, text=True, env=there, check=False)

    plain = train()
    assert plain.returncode != 0
    assert "_ChunkedLogProbFunction.apply(" in plain.stderr
    assert "AttributeError: 'NoneType' object has no attribute 'apply'" in plain.stderr
    ours = train("with the loss")
    assert ours.returncode == 0, "its head is not called then"
