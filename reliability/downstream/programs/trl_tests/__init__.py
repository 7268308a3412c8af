"""Where TRL's test files are copied to; `testing_utils` stands in for their own, which wants names of an older TRL."""

import trl
from trl.trainer import sft_trainer


class OnCpu(trl.SFTConfig):
    """Newer releases train in bfloat16 unless told otherwise, and then want a GPU."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"use_cpu": True, "bf16": False, **kwargs})


trl.SFTConfig = OnCpu
for name in ("dft_loss",):
    # What newer releases do not have: its tests fail, those of the trainer can be read.
    if not hasattr(sft_trainer, name):
        setattr(sft_trainer, name, None)
