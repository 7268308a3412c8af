"""Objectives: which weight each target token gets. Importing this package does not import torch."""

from dft_plugin.objectives.base import Number, Objective, Rows, RowStatistic
from dft_plugin.objectives.likelihood import DFT, NLL

__all__ = ["DFT", "NLL", "Number", "Objective", "RowStatistic", "Rows"]
