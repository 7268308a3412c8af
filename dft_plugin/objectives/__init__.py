"""Objectives: which weight each target token gets. Importing this package does not import torch."""

from dft_plugin.objectives.base import Divisor, Number, Objective, ReferenceNeed, Scope, Weighed, Weigher
from dft_plugin.objectives.likelihood import DFT, NLL
from dft_plugin.objectives.reference import IWSFT, PSFT, REFERENCE_COLUMNS, Mass, PriFT, ReferenceColumns
from dft_plugin.objectives.rows import BlockFunction, Rank, RowFunction, Rows, RowStatistic, Top
from dft_plugin.objectives.soft import ASFT, GIFT, SOFT_ENTROPY, SOFT_KL
from dft_plugin.objectives.targets import Clock, Distribution, Targets
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
    ASFT,
    GIFT,
)
"""All that are shipped, in the order of `dft losses`."""

__all__ = [
    "ASFT",
    "DEFT",
    "DFT",
    "EAFT",
    "FAMILY",
    "GIFT",
    "IDFT",
    "IWSFT",
    "NLL",
    "PSFT",
    "REFERENCE_COLUMNS",
    "SOFT_ENTROPY",
    "SOFT_KL",
    "BlockFunction",
    "ChordPhi",
    "Clock",
    "Distribution",
    "Divisor",
    "Focal",
    "Mass",
    "Number",
    "Objective",
    "PriFT",
    "ProFit",
    "Rank",
    "ReferenceColumns",
    "ReferenceNeed",
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
