"""`loss: sequence_mean`: a sequence is learned as far as the model finds it likely, all its tokens alike."""

from typing import ClassVar

from dft_plugin import Objective, hookimpl


class SequenceMean(Objective):
    """w = mean of p over the sequence: DFT's trust, given to whole answers."""

    name: ClassVar[str] = "sequence_mean"
    summary: ClassVar[str] = "w = mean of p over the target tokens of the sequence"
    source: ClassVar[str] = "an example of dft-plugin's guide"
    scope: ClassVar[str] = "sequence"

    def weigh(self, rows, targets, clock):
        p_T, sequence_T = rows.logp_T.exp(), targets.sequence_T
        # As many places as tokens: there are no more sequences, and to ask how many waits for the device.
        sum_T = p_T.new_zeros(len(p_T)).index_add_(0, sequence_T, p_T)
        count_T = p_T.new_zeros(len(p_T)).index_add_(0, sequence_T, p_T.new_ones(len(p_T)))
        return sum_T[sequence_T] / count_T[sequence_T]


@hookimpl
def register_objectives():
    return [SequenceMean]
