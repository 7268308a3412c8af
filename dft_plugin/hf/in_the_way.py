"""What of a trainer's own settings would bypass the loss, found before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Trainer


def in_the_way(trainer: Trainer) -> list[str]:
    """List what would bypass the loss in any Hugging Face Trainer: each with what to change."""
    args = trainer.args
    problems = []
    if trainer.compute_loss_func is not None:
        problems.append("compute_loss_func is set, and it would replace our loss. Drop it, or leave out `loss:`.")
    if args.label_smoothing_factor:
        problems.append(
            f"label_smoothing_factor is {args.label_smoothing_factor}: the Trainer takes the labels from the "
            "model and trains smoothed cross-entropy. Set it to 0."
        )
    if args.n_gpu > 1:
        problems.append(
            f"nn.DataParallel over {args.n_gpu} GPUs runs replicas that do not carry the loss. Start one process "
            "per GPU (accelerate launch, torchrun), or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    if getattr(args, "use_liger_kernel", False) and _liger_takes_forward(args.liger_kernel_config):
        problems.append(
            "use_liger_kernel replaces the model's forward when training starts. Keep its layer kernels with "
            "liger_kernel_config: {fused_linear_cross_entropy: false}."
        )
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    if getattr(parallelism, "sp_enabled", False):
        problems.append(
            "sequence parallelism (Ulysses/ALST) reduces the loss of each shard by itself, which was never run "
            "with ours. Turn it off, or use context parallelism."
        )
    if trainer.model_init is not None:
        problems.append("model_init makes a new model when training starts. Pass `model` instead.")
    return problems


def _liger_takes_forward(config: Mapping[str, Any] | None) -> bool:
    return bool((config or {}).get("fused_linear_cross_entropy", True))
