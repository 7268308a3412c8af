"""Synthetic inputs of a loss, with a target probability that is spread over 0 to 1.

Shapes: N tokens, H hidden size, V vocabulary, R LoRA rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dft_plugin.core.targets import IGNORE_INDEX

SEED = 20250807
MIB = 1 << 20


@dataclass(frozen=True)
class Shape:
    """How large a problem is, and what of its head is trained.

    Attributes:
        tokens: N.
        hidden: H.
        vocab: V.
        dtype: name of a torch dtype, of all inputs.
        trained: whether the head's weight gets a gradient.
        rank: R of a LoRA branch on the head; 0 is none.
        half: whether every other label is ignored.
        device: `cpu` or `cuda`.
    """

    tokens: int = 2048
    hidden: int = 896
    vocab: int = 151_936
    dtype: str = "float32"
    trained: bool = False
    rank: int = 0
    half: bool = False
    device: str = "cpu"

    def small(self) -> Shape:
        """Return the shape on which a variant is checked against float64: as wide, with few logits."""
        return replace(self, tokens=min(self.tokens, 96), vocab=min(self.vocab, 8192))

    def fewer(self, divisor: int = 8) -> Shape:
        """Return the shape of a warm-up."""
        return replace(self, tokens=max(self.tokens // divisor, 1))

    @property
    def bytes_each(self) -> int:
        """Bytes of one element."""
        return torch_dtype(self).itemsize

    @property
    def logits_bytes(self) -> int:
        """Bytes of all logits in the dtype of the inputs."""
        return self.tokens * self.vocab * self.bytes_each

    def __str__(self) -> str:
        parts = [f"N = {self.tokens:,}", f"H = {self.hidden:,}", f"V = {self.vocab:,}", self.dtype]
        return ", ".join(parts + ([f"R = {self.rank}"] if self.rank else []))


def torch_dtype(shape: Shape) -> torch.dtype:
    """Return the dtype that `shape` names."""
    dtype: torch.dtype = getattr(torch, shape.dtype)
    return dtype


class HiddenInputs:
    """Hidden states, a head and labels; the labels are aligned with what predicts them."""

    def __init__(self, shape: Shape, *, last_ignored: bool = False) -> None:
        self.shape = shape
        on: dict[str, Any] = {
            "generator": torch.Generator(shape.device).manual_seed(SEED),
            "device": shape.device,
        }
        weight_VH = torch.randn(shape.vocab, shape.hidden, **on).div_(math.sqrt(shape.hidden))
        labels_N = torch.randint(shape.vocab, (shape.tokens,), **on)
        hidden_NH = torch.randn(shape.tokens, shape.hidden, **on)
        # The other logits are standard normal, so their log-sum-exp is log V + 1/2: at that push p is 1/2.
        push_N1 = torch.rand(shape.tokens, 1, **on) * 2 * (math.log(shape.vocab) + 0.5)
        hidden_NH += push_N1 * weight_VH[labels_N]
        if shape.half:
            labels_N[::2] = IGNORE_INDEX
        if last_ignored:
            # Hosts shift the labels themselves, and lose the last one on the way.
            labels_N[-1] = IGNORE_INDEX
        dtype = torch_dtype(shape)
        self.labels_N = labels_N
        self.hidden_NH = hidden_NH.to(dtype).requires_grad_()
        self.weight_VH = weight_VH.to(dtype).requires_grad_(shape.trained)
        self.input_NR = self.weight_VR = None
        if shape.rank:
            self.input_NR = torch.randn(shape.tokens, shape.rank, **on).to(dtype).requires_grad_()
            self.weight_VR = (torch.randn(shape.vocab, shape.rank, **on) * 0.05).to(dtype).requires_grad_()

    @property
    def wanted(self) -> dict[str, Tensor]:
        """The tensors that get a gradient."""
        tensors = {
            "hidden": self.hidden_NH,
            "weight": self.weight_VH,
            "lora input": self.input_NR,
            "lora weight": self.weight_VR,
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.requires_grad}

    def logits(self) -> Tensor:
        """Materialise [N, V], as a model without a fused loss does."""
        logits_NV = self.hidden_NH @ self.weight_VH.t()
        if self.input_NR is not None and self.weight_VR is not None:
            logits_NV = logits_NV + self.input_NR @ self.weight_VR.t()
        return logits_NV

    def exact_logits(self) -> Tensor:
        """The same in float64, from the inputs as they are."""
        logits_NV = self.hidden_NH.detach().double() @ self.weight_VH.detach().double().t()
        if self.input_NR is not None and self.weight_VR is not None:
            logits_NV += self.input_NR.detach().double() @ self.weight_VR.detach().double().t()
        return logits_NV

    def prepare(self) -> None:
        """Forget the gradients of the last run."""
        for tensor in self.wanted.values():
            tensor.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """Return what a run has left behind."""
        return {name: tensor.grad for name, tensor in self.wanted.items() if tensor.grad is not None}

    def gradient_bytes(self) -> int:
        """Bytes of all gradients."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.wanted.values())


class LogitsInputs:
    """Logits that a model has just made, and labels."""

    def __init__(self, shape: Shape, *, last_ignored: bool = False) -> None:
        self.shape = shape
        self._last_ignored = last_ignored
        self._seed = torch.zeros((), device=shape.device, requires_grad=True)
        self.labels_N: Tensor
        self.logits_NV: Tensor
        self.grad_NV: Tensor | None = None

    def prepare(self) -> None:
        """Make the logits again: a variant may have overwritten them."""
        self.grad_NV = None
        self.logits_NV, self.labels_N = _FromModel.apply(self._seed, self)

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradient that reached the model."""
        return {} if self.grad_NV is None else {"logits": self.grad_NV}

    def draw(self) -> tuple[Tensor, Tensor]:
        """Draw logits [N, V] with spread targets, and their labels."""
        shape = self.shape
        generator = torch.Generator(shape.device).manual_seed(SEED)
        tensors: dict[str, Any] = {"generator": generator, "device": shape.device}
        labels_N = torch.randint(shape.vocab, (shape.tokens,), **tensors)
        push_N1 = torch.rand(shape.tokens, 1, **tensors) * 2 * (math.log(shape.vocab) + 0.5)
        logits_NV = torch.empty(shape.tokens, shape.vocab, device=shape.device, dtype=torch_dtype(shape))
        logits_NV.normal_(generator=generator)
        logits_NV.scatter_add_(1, labels_N[:, None], push_N1.to(logits_NV.dtype))
        if self._last_ignored:
            labels_N[-1] = IGNORE_INDEX
        return logits_NV, labels_N


class _FromModel(torch.autograd.Function):
    """Stands for the model: hands out logits that are no leaf, and takes their gradient without a copy."""

    @staticmethod
    def forward(ctx: Any, seed: Tensor, inputs: LogitsInputs) -> tuple[Tensor, Tensor]:
        ctx.inputs = inputs
        logits_NV, labels_N = inputs.draw()
        ctx.mark_non_differentiable(labels_N)
        return logits_NV, labels_N

    @staticmethod
    def backward(ctx: Any, grad_NV: Tensor, _: Any) -> tuple[Tensor, None]:
        # Kept only where it is looked at: otherwise it would outlive the run that is measured.
        ctx.inputs.grad_NV = grad_NV if grad_NV.shape[1] <= 8192 else None
        return grad_NV.new_zeros((), dtype=torch.float32), None


Inputs = HiddenInputs | LogitsInputs
