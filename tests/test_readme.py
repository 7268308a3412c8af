"""README's block for a training loop of one's own runs as it stands, and trains next-token DFT."""

from __future__ import annotations

import ast

import pytest
from support import attached, oracle, readme, tiny

# Of attach, linear_token_loss and token_loss, in the order in which the block calls them.
WEIGHTS = [oracle.dft, oracle.dft, oracle.family(alpha=0.7)]


def test_each_block_of_code_has_a_test_that_runs_it():
    hosts = {"Axolotl", "LLaMA-Factory", "TRL", "Your own `transformers.Trainer`"}
    assert set(readme.blocks()) == {*hosts, "Your own loop"}
    assert readme.PAGE.read_text(encoding="utf-8").split("<!-- hosts:end -->")[0].count("```") == 2 * 5


def run_own_loop(model, batch, elsewhere):
    """Run the block; returns (loss, gradients) for each time that it has computed `loss`.

    `elsewhere` is the number of targets in the step's other micro-batches.
    """
    scope = {"model": model, "batch": batch}
    made = []
    for statement in ast.parse(readme.blocks()["Your own loop"]).body:
        exec(compile(ast.Module([statement], []), "README.md", "exec"), scope)
        if isinstance(statement, ast.Assign):
            (name,) = (target.id for target in statement.targets)
            if name == "num_items":
                scope[name] = scope[name] + elsewhere
            elif name == "loss":
                model.zero_grad(set_to_none=True)
                scope[name].backward()
                made.append((scope[name].item(), tiny.gradients(model)))
    scope["attachment"].detach()
    return made


@pytest.mark.parametrize("elsewhere", [0, 17])
def test_every_loss_of_the_own_loop_is_that_of_the_next_token(elsewhere):
    model, batch = tiny.llama().double(), tiny.batch()
    made = run_own_loop(model, batch, elsewhere)
    num_items = int((batch["labels"][:, 1:] != -100).sum()) + elsewhere
    for result, weight in zip(made, WEIGHTS, strict=True):
        attached.assert_same(result, attached.truth(model, batch, weight, num_items))
