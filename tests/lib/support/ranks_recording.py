"""Train on one of several ranks, save, and go on with another loss; what torchrun starts. Only one rank may write.

torchrun --nproc-per-node 2 ranks_recording.py KIND OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from dft_plugin import activate
from dft_plugin.config import record as records
from dft_plugin.errors import ConflictError
from support import tiny, training

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddp": (training.lora, {"ddp_find_unused_parameters": False}),
    "fsdp2": (
        tiny.llama,
        {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
                "state_dict_type": "SHARDED_STATE_DICT",
            },
        },
    ),
}


def main(kind: str, out: str) -> None:
    torch.set_num_threads(1)
    make, changes = KINDS[kind]

    def trainer(steps: int) -> Any:
        how = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2, **changes}
        return training.trainer(Path(out), make(), max_steps=steps, **how)

    first = trainer(1)
    if not first.args.should_save:

        def refuse(path: Path, text: str) -> None:
            raise AssertionError(f"rank {first.args.process_index} writes {path}")

        records.write_whole = refuse
    activate(first)
    first.train()
    first.save_model()
    second = trainer(2)
    activate(second, "nll")
    try:
        second.train(resume_from_checkpoint=str(Path(out) / "checkpoint-1"))
    except ConflictError as error:
        Path(out, f"refused-{first.args.process_index}").write_text(str(error))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
