"""What `always_learn: eos` is for: a base model that never saw an end learns to stop. Plain DFT never teaches it."""

from __future__ import annotations

import copy

import pytest
import torch
from support import wording

from dft_plugin import attach

TOKENIZER = wording.wordwise(*map(str, range(40)))
END, LENGTH = TOKENIZER.eos_token_id, 12


def walk(rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Texts [rows, length] without an end: each token is one or two further than the last, on a ring of 40."""
    first_B1 = torch.randint(0, 40, (rows, 1), generator=generator)
    steps_BS = torch.randint(1, 3, (rows, length - 1), generator=generator)
    return 2 + torch.cat([first_B1, first_B1 + steps_BS.cumsum(1)], 1) % 40


def answers(rows: int, generator: torch.Generator) -> torch.Tensor:
    """Such texts that end."""
    return torch.cat([walk(rows, LENGTH, generator), torch.full((rows, 1), END)], 1)


def train(model, batches, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for ids in batches:
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def probability_of_the_end(model) -> float:
    ids = answers(64, torch.Generator().manual_seed(9))
    with torch.no_grad():
        return model(input_ids=ids).logits[:, LENGTH - 1].softmax(-1)[:, END].mean().item()


@pytest.fixture(scope="module")
def base():
    """A model that knows the texts, and has never seen one end."""
    generator = torch.Generator().manual_seed(0)
    model = wording.model_for(TOKENIZER, initializer_range=0.05)
    train(model, (walk(16, 2 * LENGTH, generator) for _ in range(200)), 5e-3)
    assert probability_of_the_end(model) < 0.001
    return model


@pytest.mark.parametrize(
    ("loss", "least", "most"),
    [("dft", 0.0, 0.001), ({"name": "dft", "always_learn": "eos"}, 0.5, 1.0)],
    ids=["dft", "eos"],
)
def test_a_base_model_learns_to_stop_where_the_end_is_always_learned(base, loss, least, most):
    model, generator = copy.deepcopy(base), torch.Generator().manual_seed(1)
    attachment = attach(model, loss, tokenizer=TOKENIZER)
    train(model, (answers(16, generator) for _ in range(120)), 2e-3)
    attachment.detach()
    assert least <= probability_of_the_end(model) <= most
