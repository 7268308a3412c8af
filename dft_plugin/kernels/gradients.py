"""The gradients of a linear layer's inputs, made chunk by chunk before the upstream factor is known.

Shapes: T scored tokens, C tokens of a chunk, D hidden size, V vocabulary, R LoRA rank, N any width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dft_plugin.kernels.products import add_product_
from dft_plugin.kernels.rows import scale_rows
from dft_plugin.kernels.softmax import accumulation_dtype

Inputs = Sequence[Tensor | None]
"""What a kernel is given; the first are the hidden states [T, D].

Those of a linear layer with a LoRA branch are hidden_TD, weight_VD, bias_V, input_TR and weight_VR.
"""

LINEAR_PER_TOKEN = (0, 3)
"""Those of a linear layer's that are rows of tokens."""


@dataclass(frozen=True)
class Projection:
    """The tensors of the head in the dtype of the GEMMs."""

    weight_VD: Tensor
    bias_V: Tensor | None
    weight_VR: Tensor | None

    @classmethod
    def of(cls, inputs: Inputs, dtype: torch.dtype) -> Projection:
        """Cast those of a linear layer's inputs."""
        _, weight_VD, bias_V, _, weight_VR = inputs
        assert weight_VD is not None
        return cls(weight_VD.to(dtype), _cast(bias_V, dtype), _cast(weight_VR, dtype))

    def into(self, out_CV: Tensor, hidden_CD: Tensor, input_CR: Tensor | None) -> Tensor:
        """Project a chunk: raw logits into `out_CV`."""
        if self.bias_V is None:
            torch.mm(hidden_CD, self.weight_VD.t(), out=out_CV)
        else:
            # One rounding of half-precision logits, as in `torch.nn.functional.linear`.
            torch.addmm(self.bias_V, hidden_CD, self.weight_VD.t(), out=out_CV)
        if input_CR is not None and self.weight_VR is not None:
            out_CV.addmm_(input_CR, self.weight_VR.t())
        return out_CV


@dataclass
class Gradients:
    """Gradients of a kernel's inputs, before the upstream factor.

    A token's own gradient is kept apart from a factor in the dtype of sums: its weight w may be so small that half
    precision would lose the product before a loss scale meets it. What is summed over tokens is kept in the dtype of
    sums. Memory is written by what comes first, not by zeros: those of a large head cost as much as a chunk's product.

    Attributes:
        of: one for each input, None where nobody wants one.
        per_token: which of them are rows of tokens, to be multiplied by `factor_T1`.
        factor_T1: of the dtype of sums.
        begun: those of the others that hold a sum already.
    """

    of: list[Tensor | None]
    per_token: tuple[int, ...]
    factor_T1: Tensor
    begun: set[int] = field(default_factory=set)

    @classmethod
    def like(
        cls, inputs: Inputs, wanted: Sequence[bool], dtype: torch.dtype, per_token: tuple[int, ...] = (0,)
    ) -> Gradients:
        """Start with memory for the inputs that want a gradient, nothing written yet, and factors of one.

        Args:
            inputs: what the gradients belong to; the first are hidden states [T, D].
            wanted: which of them want one.
            dtype: of a token's own gradients.
            per_token: which of them are rows of tokens.
        """
        hidden_TD = inputs[0]
        assert hidden_TD is not None
        grads = [
            torch.empty_like(tensor, dtype=dtype if index in per_token else accumulation_dtype(tensor.dtype))
            if tensor is not None and want
            else None
            for index, (tensor, want) in enumerate(zip(inputs, wanted, strict=True))
        ]
        return cls(grads, per_token, hidden_TD.new_ones(hidden_TD.shape[0], 1, dtype=accumulation_dtype(dtype)))

    def add_(self, index: int, gradient: Tensor) -> None:
        """Add to one that is summed over tokens."""
        total = self.of[index]
        assert total is not None
        if self._begins(index):
            total.copy_(gradient)
        else:
            total += gradient

    def add_product_(self, index: int, grad_CV: Tensor, right_CN: Tensor) -> None:
        """Add `grad_CV.T @ right_CN` to one that is summed over tokens, a vector where N is 1."""
        total = self.of[index]
        assert total is not None
        total_VN = total if total.dim() == 2 else total[:, None]
        add_product_(total_VN, grad_CV, right_CN, first=self._begins(index))

    def _begins(self, index: int) -> bool:
        first = index not in self.begun
        self.begun.add(index)
        return first

    def times(self, upstream: Tensor, inputs: Inputs) -> Iterator[Tensor | None]:
        """Multiply by the upstream factor, in place where the dtypes allow; each in the dtype of its input."""
        for index, (grad, tensor) in enumerate(zip(self.of, inputs, strict=True)):
            if grad is None or tensor is None:
                yield None
            elif index in self.per_token:
                yield scale_rows(grad, self.factor_T1 * upstream, tensor.dtype)
            elif grad.is_cpu or grad.dtype == tensor.dtype:
                yield grad.mul_(upstream).to(tensor.dtype)
            else:
                # In one pass; on a CPU it would take a copy in the dtype of sums.
                yield torch.mul(grad, upstream, out=torch.empty_like(grad, dtype=tensor.dtype))


def add_chunk_(
    grads: Gradients,
    projection: Projection,
    chunk: slice,
    grad_CV: Tensor,
    factor_C: Tensor,
    hidden_CD: Tensor,
    input_CR: Tensor | None,
) -> None:
    """Add what a chunk gives to the gradients of a linear layer's inputs.

    Args:
        grads: what is added to.
        projection: of the chunk.
        chunk: its tokens.
        grad_CV: times the factor, the gradient on the raw logits, see `softmax.store_`.
        factor_C: of the dtype of sums.
        hidden_CD: in the dtype of the GEMMs.
        input_CR: the same for the LoRA branch.
    """
    hidden_TD, weight_VD, bias_V, input_TR, weight_VR = grads.of
    factor_C1 = factor_C[:, None]
    grads.factor_T1[chunk] = factor_C1
    if hidden_TD is not None:
        torch.mm(grad_CV, projection.weight_VD, out=hidden_TD[chunk])
    if weight_VD is not None:
        grads.add_product_(1, grad_CV, hidden_CD * factor_C1)
    if bias_V is not None:
        grads.add_product_(2, grad_CV, factor_C1.clone())
    if input_TR is not None and projection.weight_VR is not None:
        torch.mm(grad_CV, projection.weight_VR, out=input_TR[chunk])
    if weight_VR is not None and input_CR is not None:
        grads.add_product_(4, grad_CV, input_CR * factor_C1)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
