"""What `dft report --config` shows of a run's rows, beside the logits of the model that the run has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dft_plugin.cli import comparing, sampling
from dft_plugin.hf.wrapping import wrapper_of


def assert_right(config: Path, out: Path, checkpoint: Path, trainer: Any, alpha: float) -> None:
    """Do all that `dft report OUT --config CONFIG --model CHECKPOINT` does, but for the page.

    Args:
        config: of the run.
        out: what it wrote.
        checkpoint: the last one.
        trainer: the run's own, with the weights of that checkpoint; taken to float64.
        alpha: of the loss.
    """
    runs = comparing.load_all([out])
    comparing.show(runs)
    assert str(runs[0].loss).startswith(f"dft(alpha={alpha}")
    assert runs[0].histograms
    found = sampling.find(sampling.Asked(config, str(checkpoint), None, None, 3), runs)
    assert found is not None
    wrapper_of(trainer).remove()
    model = trainer.model.double().eval()
    rows = [_by_hand(model, row["input_ids"], row["labels"], alpha) for row in trainer.train_dataset]
    assert len(found.rows) == 3
    for row in found.rows:
        scored = [token.scored for token in row.tokens if token.scored is not None]
        shown = torch.tensor([(one.p, one.weight, one.nll, one.loss) for one in scored], dtype=torch.float64)
        near = [one for one in rows if one.shape == shown.shape and torch.allclose(one, shown, rtol=1e-4, atol=1e-7)]
        assert near, "no row of the run's own data has these numbers"


def _by_hand(model: Any, ids: list[int], labels: list[int], alpha: float) -> Tensor:
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    target = torch.tensor(labels[1:])
    logp = logp[target != -100].gather(1, target[target != -100][:, None])[:, 0]
    weight = (alpha * logp).exp()
    return torch.stack([logp.exp(), weight, -logp, -weight * logp], 1)
