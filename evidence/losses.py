"""The losses that are compared: what stands after `loss:`, or an objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evidence.sentence import Sentence

CORE: Mapping[str, Any] = {
    "SFT": "nll",
    "DFT": "dft",
    "floor 0.1": {"name": "dft", "floor": 0.1},
    "alpha 0.5": {"name": "dft", "alpha": 0.5},
    "EAFT": "eaft",
}
"""In the full grid."""

FAMILY: Mapping[str, Any] = {
    "alpha 0.25": {"name": "dft", "alpha": 0.25},
    "alpha 0.75": {"name": "dft", "alpha": 0.75},
    "floor 0.01": {"name": "dft", "floor": 0.01},
    "floor 0.03": {"name": "dft", "floor": 0.03},
    "floor 0.3": {"name": "dft", "floor": 0.3},
    "SFT, then DFT": {"name": "dft", "first": {"name": "nll", "for": 0.3}},
    "alpha 0 to 1": {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 0.5}},
    "iDFT": "idft",
    "DEFT": "deft",
    "ProFit": "profit",
    "CHORD-phi": "chord_phi",
    "focal": "focal",
    "PRIFT": {"name": "prift", "reference": "copy"},
    "iw-SFT": {"name": "iw_sft", "reference": "copy"},
    "ASFT": {"name": "asft", "reference": "copy"},
    "GIFT": {"name": "gift", "reference": "copy"},
    "weight of the answer": Sentence(),
    "its geometric mean": Sentence(mean="geometric"),
}
"""At the telling points alone."""

ENDS: Mapping[str, Any] = {"DFT, end learned": {"name": "dft", "always_learn": [1]}}
"""Where answers never ended before: the token that ends them by its id."""

LOSSES: Mapping[str, Any] = {**CORE, **FAMILY, **ENDS}

BASE = "base"
"""No training: the model as it was."""
