"""DeepSpeed on a CPU without collectives of its own."""

from __future__ import annotations

import deepspeed


def over_gloo() -> None:
    """Have DeepSpeed leave its collectives in shared memory alone, and use the process group as it is.

    It would compile them when it is first asked, for minutes where the machine is busy; a process that is killed
    meanwhile leaves a lock, for which every later one waits without end.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
