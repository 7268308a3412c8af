"""Objectives: which weight each target token gets. Importing this package does not import torch."""

from dft_plugin.objectives.base import Divisor, Number, Objective, Scope, Weighed, Weigher
from dft_plugin.objectives.likelihood import DFT, NLL
from dft_plugin.objectives.reference import IWSFT, PSFT, PriFT
from dft_plugin.objectives.rows import BlockFunction, Rank, RowFunction, Rows, RowStatistic, Top
from dft_plugin.objectives.targets import Clock, Targets
from dft_plugin.objectives.trust import DEFT, EAFT, IDFT, ChordPhi, Focal, ProFit, Thresholded

FAMILY: tuple[type[Objective], ...] = (
    DFT,
    NLL,
    EAFT,
    PriFT,
    IDFT,
    DEFT,
    ProFit,
    Thresholded,
    ChordPhi,
    IWSFT,
    PSFT,
    Focal,
)
"""All that are shipped, in the order of `dft losses`."""

__all__ = [
    "DEFT",
    "DFT",
    "EAFT",
    "FAMILY",
    "IDFT",
    "IWSFT",
    "NLL",
    "PSFT",
    "BlockFunction",
    "ChordPhi",
    "Clock",
    "Divisor",
    "Focal",
    "Number",
    "Objective",
    "PriFT",
    "ProFit",
    "Rank",
    "RowFunction",
    "RowStatistic",
    "Rows",
    "Scope",
    "Targets",
    "Thresholded",
    "Top",
    "Weighed",
    "Weigher",
]
