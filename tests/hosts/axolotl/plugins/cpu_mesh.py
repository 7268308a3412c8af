"""An Axolotl plugin that lets ranks that share a model share a CPU, and leaves what they trained in `trained.pt`."""

import os

import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from axolotl.integrations.base import BasePlugin
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback


class CpuMesh(BasePlugin):
    def load_datasets(self, cfg, preprocess=False):
        cfg.device_map = None
        build, init = ParallelismConfig.build_device_mesh, PartialState.__init__

        def init_as_on_gpus(state, *args, **kwargs):
            init(state, *args, **kwargs)
            # accelerate refuses to be parallel on `MULTI_CPU`.
            state.distributed_type = DistributedType.MULTI_GPU

        ParallelismConfig.build_device_mesh = lambda config, device: build(config, "cpu")
        PartialState.__init__ = init_as_on_gpus
        # torch's norm takes no mixture of sharded and whole gradients, with any loss; nothing is clipped here.
        Trainer._get_grad_norm = lambda trainer, model, grad_norm=None: torch.zeros(())

    def add_callbacks_post_trainer(self, cfg, trainer):
        return [Leave()]


class Leave(TrainerCallback):
    """Saving a tensor-parallel model fails here, with any loss, so the run ends before."""

    def on_train_end(self, args, state, control, model=None, **kwargs):
        named = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}
        sharded = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
        if args.process_index == 0:
            weights = {name: p.detach().clone() for name, p in named.items()}
            torch.save({"logs": state.log_history, "weights": weights, "sharded": sharded}, "trained.pt")
        torch.distributed.barrier()
        os._exit(0)
