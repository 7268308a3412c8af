"""One step with an installed objective, beside its formula in float64: prints how far loss and gradients are off.

python one_step.py OBJECTIVE HOST FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from support import oracle, training

from dft_plugin import activate

IDS = [5, 9, 17]


def sqrt(logp_T, ids_T, row_T):
    return 0.5 * (0.5 * logp_T).exp()


def downweight(logp_T, ids_T, row_T):
    factor_T = torch.tensor([0.25 if token in IDS else 1.0 for token in ids_T.tolist()], dtype=torch.float64)
    return factor_T * logp_T.exp()


def sequence_mean(logp_T, ids_T, row_T):
    return torch.stack([logp_T[row_T == row].exp().mean() for row in row_T])


CASES = {
    "sqrt": ({"name": "sqrt", "scale": 0.5}, sqrt),
    "downweight": ({"name": "downweight", "ids": IDS, "factor": 0.25}, downweight),
    "sequence_mean": ("sequence_mean", sequence_mean),
}


def by_hand(model, batch, formula):
    """Loss of a batch, with the graph of `-sg(w) * log p`."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "num_items_in_batch")}
    logits, labels = model(**inputs).logits[:, :-1], batch["labels"][:, 1:]
    kept = labels != -100
    logp_T = oracle.log_probabilities(logits[kept], labels[kept])
    weight_T = formula(logp_T.detach(), labels[kept], kept.nonzero()[:, 0])
    return -(weight_T * logp_T).mean()


def main(name: str, host: str, folder: str) -> None:
    settings, formula = CASES[name]
    make = training.sft_trainer if host == "trl" else training.trainer
    trainer = make(Path(folder), max_steps=1)
    expected = by_hand(trainer.model, next(iter(trainer.get_train_dataloader())), formula)
    expected.backward()
    gradients = {key: parameter.grad.clone() for key, parameter in trainer.model.named_parameters()}
    trainer.model.zero_grad(set_to_none=True)
    before = training.trained(trainer.model)
    activate(trainer, settings)
    trainer.train()
    after = training.trained(trainer.model)
    # SGD with a rate of 1: the step is the gradient.
    off = {key: float((before[key] - after[key] - grad).norm() / grad.norm()) for key, grad in gradients.items()}
    print(json.dumps({"loss": training.losses(trainer)[0] / expected.item(), "gradient": max(off.values())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
