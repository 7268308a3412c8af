"""What two processes send in a step, stock and with our loss: each collective, DDP's own among them, is counted."""

from __future__ import annotations

import pytest
import torch

from reliability.scale import page, predicting, ranks
from reliability.scale.counting import Collective, kind_of

pytestmark = pytest.mark.slow

RANKS = 2


@pytest.fixture(scope="module")
def found():
    return ranks.counted(RANKS)


@pytest.mark.parametrize("engine", ["DDP", "FSDP2"])
def test_a_step_sends_what_stock_sends(engine, found):
    stock, ours = found[f"{engine} | stock"], found[f"{engine} | ours"]
    assert len(stock) == len(ours) == ranks.STEPS
    assert stock[-1], "DDP's reducer, or FSDP2, was seen"
    assert ours[1:] == stock[1:]
    more, less = page.beyond(stock[0], ours[0])
    assert not less
    if engine == "DDP":
        assert not more
    else:
        assert {one.kind for one in more} == {"all-gather"}, "a first batch is talked over"
        assert sum(one.size for one in more) < 1024 * RANKS


def test_gradients_of_ddp_are_seen_to_the_byte(found):
    size = sum(parameter.nbytes for parameter in ranks.model().parameters())
    assert [one.size for one in found["DDP | ours"][-1] if one.kind == "all-reduce"] == [size]


def test_a_head_that_is_split_gathers_logits_of_scored_tokens_alone(found):
    scored = int((ranks.batch(0)["labels"][:, 1:] != -100).sum())
    logit, hidden = 4 * ranks.VOCAB, 4 * ranks.WIDTH
    every = ranks.ROWS * ranks.LENGTH
    assert sorted(found["tensor-parallel head | stock"][-1]) == [
        Collective("all-gather", every * logit),
        Collective("all-reduce", every * hidden),
    ]
    # One row more, by which the model is asked what it does to its logits.
    assert sorted(found["tensor-parallel head | ours"][-1]) == [
        Collective("all-gather", logit),
        Collective("all-gather", scored * logit),
        Collective("all-reduce", scored * hidden),
    ]


def test_a_split_vocabulary_sends_what_the_formula_says(found):
    expected = page.expected_split(RANKS)
    assert len(expected) == 2 * 3 + 2, "three chunks"
    assert found["split vocabulary | ours"] == [expected] * ranks.STEPS


def counts(collectives):
    """Kinds, without the one number of targets: stock gathers what each rank has, ours adds it up."""
    return [
        one for one in collectives if one not in (Collective("all-gather", 8 * RANKS), Collective("all-reduce", 8))
    ]


@pytest.mark.parametrize("name", ranks.TRAINERS)
def test_a_run_of_the_trainer_sends_one_small_reduction_more_in_each_log(name, found):
    (stock,), (ours,) = found[f"{name} | stock"], found[f"{name} | ours"]
    logs = ranks.STEPS // ranks.LOG_EVERY
    more, less = page.beyond(counts(stock), counts(ours))
    assert sorted(more, key=lambda one: one.size) == [
        # At the end of the run: whether what was trained is finite.
        Collective("all-reduce", 4),
        *[Collective("all-reduce", predicting.log_bytes())] * logs,
    ]
    assert not less
    if name.endswith(("false", "itself")):
        # Stock takes a mean of means then, or what an author counts is left alone.
        assert len(ours) == len(stock) + logs + 1 + ranks.STEPS
    else:
        assert len(ours) == len(stock) + logs + 1, (
            "the targets of a step are counted over ranks once, not by the trainer, too"
        )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("allreduce_", "all-reduce"),
        ("_allgather_base_", "all-gather"),
        ("all_gather_into_tensor", "all-gather"),
        ("_reduce_scatter_base_", "reduce-scatter"),
        ("reduce_", "reduce"),
        ("alltoall_base_", "all-to-all"),
        ("wait_tensor", None),
    ],
)
def test_operations_are_known_by_their_names(name, kind):
    assert kind_of(name) == kind


def test_what_a_rank_sends():
    assert Collective("all-reduce", 800).sent(4) == pytest.approx(1200)
    assert Collective("all-gather", 800).sent(4) == pytest.approx(600)
    assert torch.tensor(Collective("all-reduce", 8).sent(1)) == 0
