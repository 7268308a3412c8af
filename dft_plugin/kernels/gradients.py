"""The gradients of a linear layer's inputs, made chunk by chunk before the upstream factor is known.

Shapes: T scored tokens, C tokens of a chunk, D hidden size, V vocabulary, R LoRA rank, N any width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dft_plugin.kernels.rows import scale_rows
from dft_plugin.kernels.softmax import HALF_PEAK, accumulation_dtype

_BLOCK_ROWS = 8192
"""Rows of a weight's gradient that are added at a time where a product and a sum have different dtypes."""

_FLOAT16_EXPONENT = 15
"""Sums of float16 are kept below 2 to this power, half of what they may be."""

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
    sums.

    Attributes:
        of: one for each input, None where nobody wants one.
        per_token: which of them are rows of tokens, to be multiplied by `factor_T1`.
        factor_T1: of the dtype of sums.
    """

    of: list[Tensor | None]
    per_token: tuple[int, ...]
    factor_T1: Tensor

    @classmethod
    def like(
        cls, inputs: Inputs, wanted: Sequence[bool], dtype: torch.dtype, per_token: tuple[int, ...] = (0,)
    ) -> Gradients:
        """Start with zeros for the inputs that want a gradient, and factors of one.

        Args:
            inputs: what the gradients belong to; the first are hidden states [T, D].
            wanted: which of them want one.
            dtype: of a token's own gradients.
            per_token: which of them are rows of tokens.
        """
        hidden_TD = inputs[0]
        assert hidden_TD is not None
        grads = [
            torch.zeros_like(tensor, dtype=dtype if index in per_token else accumulation_dtype(tensor.dtype))
            if tensor is not None and want
            else None
            for index, (tensor, want) in enumerate(zip(inputs, wanted, strict=True))
        ]
        return cls(grads, per_token, hidden_TD.new_ones(hidden_TD.shape[0], 1, dtype=accumulation_dtype(dtype)))

    def times(self, upstream: Tensor, inputs: Inputs) -> Iterator[Tensor | None]:
        """Multiply by the upstream factor, in place where the dtypes allow; each in the dtype of its input."""
        for index, (grad, tensor) in enumerate(zip(self.of, inputs, strict=True)):
            if grad is None or tensor is None:
                yield None
            elif index in self.per_token:
                yield scale_rows(grad, self.factor_T1 * upstream, tensor.dtype)
            else:
                yield grad.mul_(upstream).to(tensor.dtype)


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
        _add_product_(weight_VD, grad_CV, hidden_CD * factor_C1)
    if bias_V is not None:
        _add_product_(bias_V[:, None], grad_CV, factor_C1.clone())
    if input_TR is not None and projection.weight_VR is not None:
        torch.mm(grad_CV, projection.weight_VR, out=input_TR[chunk])
    if weight_VR is not None and input_CR is not None:
        _add_product_(weight_VR, grad_CV, input_CR * factor_C1)


def _add_product_(total_VN: Tensor, grad_CV: Tensor, right_CN: Tensor) -> None:
    """Add `grad_CV.T @ right_CN`; the right factor, in the dtype of sums, is overwritten."""
    dtype = grad_CV.dtype
    if total_VN.dtype == dtype:
        total_VN.addmm_(grad_CV.t(), right_CN)
        return
    undo_N = _fit_float16_(right_CN) if dtype == torch.float16 else None
    right_CN = right_CN.to(dtype)
    for start in range(0, total_VN.shape[0], _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        product_BN = grad_CV[:, rows].t() @ right_CN
        total_VN[rows] += product_BN if undo_N is None else product_BN * undo_N


def _fit_float16_(right_CN: Tensor) -> Tensor:
    """Multiply each column by a power of two, which rounds nothing: as large as no sum over the rows can overflow.

    Returns:
        What undoes it in the product, [N].
    """
    bound_N = HALF_PEAK * right_CN.abs().sum(0)
    exponent_N = torch.frexp(bound_N).exponent.clamp(min=-100) - _FLOAT16_EXPONENT
    one_N = torch.ones_like(bound_N)
    right_CN.mul_(torch.ldexp(one_N, -exponent_N))
    return torch.ldexp(one_N, exponent_N)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
