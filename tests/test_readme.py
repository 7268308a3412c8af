"""The training loop of one's own of the documentation runs as it stands, and trains next-token DFT."""

from __future__ import annotations

import pytest
import torch
from support import attached, oracle, readme, tiny

from dft_plugin import attach, token_loss

ROOT = readme.ROOT

HOSTS = {"Axolotl", "LLaMA-Factory", "TRL", "ms-swift", "verl", "transformers"}


def test_each_block_of_code_has_a_test_that_runs_it():
    """Each in a `test_readme.py` below tests/hosts."""
    assert set(readme.blocks()) == HOSTS
    assert readme.PAGE.read_text(encoding="utf-8").split("<!-- hosts:end -->")[0].count("```") == 2 * len(HOSTS)
    looked_at = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "hosts").rglob("test_readme.py")
    )
    assert all(f'blocks()["{name}"]' in looked_at for name in HOSTS)


def batches(count):
    """Different ones, of different numbers of targets."""
    made = []
    for number in range(count):
        batch = tiny.batch(seed=number)
        batch["labels"][0, : 2 + number] = -100
        made.append(batch)
    return made


def targets_of(batch):
    return int((batch["labels"][:, 1:] != -100).sum())


def run(model, given):
    """Run the block with an optimizer that notes the gradients of each step and changes nothing."""
    steps = []

    class Noting:
        def __init__(self, parameters, lr):
            self.parameters = list(parameters)

        def step(self):
            steps.append(tiny.gradients(model))

        def zero_grad(self):
            for parameter in self.parameters:
                parameter.grad = None

    class Optim:
        AdamW = Noting

    scope = {"model": model, "batches": given}
    code = readme.own_loop().replace("torch.optim.AdamW", "optim.AdamW")
    exec(compile(code, "own-loop.md", "exec"), {**scope, "optim": Optim})
    return steps


def test_the_own_loop_is_short():
    code = [line for line in readme.own_loop().splitlines() if line.strip() and "#" not in line]
    assert len(code) <= 16


def test_each_step_of_the_own_loop_is_that_of_the_next_token_over_all_its_batches():
    model, given = tiny.llama().double(), batches(6)
    steps = run(model, given)
    assert len(steps) == 2
    for part, gradients in zip((given[:4], given[4:]), steps, strict=True):
        num_items = sum(map(targets_of, part))
        expected = [attached.truth(model, batch, oracle.dft, num_items)[1] for batch in part]
        for name, gradient in gradients.items():
            assert oracle.gap(gradient, sum(one[name] for one in expected)) < 1e-9, name


def test_the_own_loop_learns():
    model, given = tiny.llama(), batches(4) * 5
    before = attached.truth(model, given[0], oracle.nll, targets_of(given[0]))[0]
    code = readme.own_loop().replace("5e-5", "1e-2")
    exec(compile(code, "own-loop.md", "exec"), {"model": model, "batches": given})
    after = attached.truth(model, given[0], oracle.nll, targets_of(given[0]))[0]
    assert after < before


@pytest.mark.parametrize("elsewhere", [0, 17])
def test_the_other_two_ways_are_the_same_loss(elsewhere):
    model, batch = tiny.llama().double(), tiny.batch()
    num_items = targets_of(batch) + elsewhere
    expected = attached.truth(model, batch, oracle.dft, num_items)
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    of_logits = token_loss(logits, batch["labels"], shift=True, num_items=num_items)
    assert of_logits.item() == pytest.approx(float(expected[0]), rel=1e-9)
    attachment = attach(model, loss="dft")
    of_model = model(**batch, num_items_in_batch=torch.tensor(num_items)).loss
    assert of_model.item() == pytest.approx(float(expected[0]), rel=1e-9)
    attachment.detach()
