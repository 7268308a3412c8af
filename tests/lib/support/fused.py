"""The Triton kernel where it can run: on a GPU, or interpreted on the CPU (TRITON_INTERPRET=1 before any import)."""

from __future__ import annotations

import importlib.util
import logging
import os

import pytest

from dft_plugin.kernels import logits, scoring
from dft_plugin.kernels.compiled import CompiledScorer

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="nox -s aot interprets Triton")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]

FILTER = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
"""The interpreter computes with NumPy, which warns of infinities."""


def scorer_for(device, monkeypatch, score_block_=None):
    """Let all kernels score rows on a device as an accelerator does; returns the scorer."""
    scorer = scoring.RowScorer(device, score_block_ or CompiledScorer(device))
    for module in (scoring, logits):
        monkeypatch.setattr(module, "row_scorer", lambda device_type: scorer)
    return scorer


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
