"""The loss object: pickled, sent, and called where nothing of ours is patched; and what it makes of edges."""

from __future__ import annotations

import pickle
import textwrap
from itertools import pairwise

import pytest

pytest.importorskip("verl")

import torch
from support import tiny
from support.verl_runs import python
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData

from dft_plugin.plans import plan_for
from dft_verl.loss import SUMS, SftLoss

pytestmark = pytest.mark.host

LENGTHS = (5, 3, 7)


def batch(first_is_target: bool = False, **more):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, tiny.VOCAB, (n,), generator=generator) for n in LENGTHS]
    masks = [torch.ones(n, dtype=torch.long) for n in LENGTHS]
    for mask in masks:
        mask[0] = int(first_is_target)
    nested = {
        "input_ids": torch.nested.as_nested_tensor(ids, layout=torch.jagged),
        "loss_mask": torch.nested.as_nested_tensor(masks, layout=torch.jagged),
    }
    data = TensorDict(nested, batch_size=[len(LENGTHS)])
    for name, value in {"batch_num_tokens": 24, "dp_size": 2, **more}.items():
        data[name] = NonTensorData(value)
    logp = -torch.rand(sum(LENGTHS), generator=generator) * 3
    return logp, data


def output_of(logp, data):
    return {"log_probs": torch.nested.nested_tensor_from_jagged(logp, data["input_ids"].offsets())}


def expected(logp):
    """All but the last of each sequence predicts something."""
    kept = torch.cat([torch.arange(n) < n - 1 for n in LENGTHS])
    exact = logp.detach().double()[kept]
    return float((-exact.exp() * exact).sum() / 24 * 2)


def test_it_is_called_as_verl_calls_its_own():
    logp, data = batch()
    logp.requires_grad_()
    loss, metrics = SftLoss({"name": "dft"})(config=None, model_output=output_of(logp, data), data=data, dp_group=None)
    loss.backward()
    assert loss.item() == pytest.approx(expected(logp), rel=1e-6)
    assert torch.allclose(logp.grad[0], -logp.detach()[0].exp() / 12)
    assert metrics[SUMS][0] == sum(LENGTHS) - len(LENGTHS)


def test_pickled_it_is_its_settings_and_works_in_a_bare_process(tmp_path):
    loss = SftLoss({"name": "dft", "alpha": 0.5}, always=(7,), factors={9: 2.0}, ends=(2,))
    assert loss.plan
    sent = pickle.loads(pickle.dumps(loss))
    assert sent == loss
    assert "plan" not in vars(sent)
    logp, data = batch()
    (tmp_path / "sent").write_bytes(pickle.dumps((loss, logp, data)))
    (tmp_path / "worker.py").write_text(
        textwrap.dedent("""
        import pickle, sys
        import torch
        loss, logp, data = pickle.load(open("sent", "rb"))
        output = {"log_probs": torch.nested.nested_tensor_from_jagged(logp, data["input_ids"].offsets())}
        print("LOSS", repr(loss(model_output=output, data=data)[0].item()))
        print("TRAINER", "dft_verl.trainer" in sys.modules)
        """)
    )
    done = python(tmp_path, "worker.py", VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("LOSS", "TRAINER")))
    here, _ = loss(model_output=output_of(logp, data), data=data)
    assert float(said["LOSS"]) == here.item()
    assert said["TRAINER"] == "False"


def test_the_end_of_a_sequence_never_predicts_the_beginning_of_the_next():
    """verl's own loss rolls the mask of all sequences as if they were one: where first tokens are targets, it does."""
    from verl.workers.utils.losses import sft_loss

    logp, data = batch(first_is_target=True)
    loss, _ = SftLoss({"name": "nll"})(model_output=output_of(logp, data), data=data)
    kept = torch.cat([torch.arange(n) < n - 1 for n in LENGTHS])
    assert loss.item() == pytest.approx(-logp[kept].sum().item() / 24 * 2, rel=1e-6)
    stock, _ = sft_loss(None, output_of(logp, data), data)
    assert stock.item() == pytest.approx(-logp.sum().item() / 24 * 2, rel=1e-6)


def test_an_objective_of_sequences_sees_those_of_the_batch():
    from support.weighers import OfSequence

    logp, data = batch()
    loss = SftLoss({"name": "nll"})
    # One of a third party, which has a name only where its package is installed.
    vars(loss)["plan"] = plan_for(OfSequence())
    value, _ = loss(model_output=output_of(logp, data), data=data)
    starts = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    parts = [logp.double()[start : end - 1] for start, end in pairwise(starts)]
    total = sum((-part.exp().mean() * part).sum() for part in parts)
    assert value.item() == pytest.approx(float(total) / 24 * 2, rel=1e-6)


def test_verl_makes_log_p_in_the_dtype_of_the_logits():
    """Where flash-attention is missing: its own loss of bfloat16 logits has two digits."""
    from verl.utils.torch_functional import logprobs_from_logits

    made = logprobs_from_logits(torch.randn(4, 9).bfloat16(), torch.tensor([1, 2, 3, 4]))
    assert made.dtype == torch.bfloat16
