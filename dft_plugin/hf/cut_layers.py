"""What DeepSpeed's AutoTP makes of a model's layers: parts that this loss cannot score, layers without their adapters.

It cuts them when its engine is made, behind everything that looks at a model beforehand.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dft_plugin.errors import UnsupportedModelError
from dft_plugin.hf.adapters import can_be_switched_off
from dft_plugin.hf.head import find_door

_CUT = "ds_is_replaced_module"
"""What DeepSpeed writes on the weights of its own layers (`deepspeed.module_inject.layers`)."""


class Adapted:
    """The layers that had adapters when the loss was put on a model.

    Args:
        model: it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = tuple(name for name, module in model.named_modules() if can_be_switched_off(module))

    def require(self, model: nn.Module) -> None:
        """Refuse a model whose adapters are gone: AutoTP puts layers of its own in their place, of the base alone.

        Raises:
            UnsupportedModelError: what to write in the DeepSpeed config.
        """
        now = dict(model.named_modules())
        lost = [name for name in self.names if getattr(getattr(now.get(name), "weight", None), _CUT, False)]
        if lost:
            raise UnsupportedModelError(
                f"DeepSpeed's AutoTP has put layers of its own in the place of {len(lost)} of {len(self.names)} "
                f"with adapters ({', '.join(lost[:2])}{' ...' if lost[2:] else ''}), and left out the adapters: they "
                "would not be trained. Leave out `tensor_parallel` in the DeepSpeed config, or train without adapters."
            )


def require_all_logits(model: Any) -> None:
    """Refuse a head that gives each rank the logits of a part of the vocabulary.

    AutoTP makes one of a tied head and brings a cross-entropy that knows of the others. A softmax over one part alone
    would be a wrong number wherever the labels are in it.

    Raises:
        UnsupportedModelError: what to write in the DeepSpeed config.
    """
    head = model.get_output_embeddings()
    if head is None:
        return
    owner = find_door(head).owner
    linear: Any = getattr(owner, "base_layer", owner)
    if getattr(linear, "is_vocab_parallel_lm_head", False):
        raise UnsupportedModelError(
            f"the head is a {type(linear).__name__} (DeepSpeed's AutoTP): each rank has logits of "
            f"{linear.weight.shape[0]} of {linear.vocab_size} tokens, and ours needs all of them. Set "
            "`vocab_parallel_lm_head: false` in `tensor_parallel` of the DeepSpeed config, or leave out `loss:`."
        )
