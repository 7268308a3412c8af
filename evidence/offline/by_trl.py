"""DPO, GRPO and RLOO by TRL's trainers, with TRL's defaults but for the budget and the schedule of the study.

TRL 1.16 has no trainer for PPO, not in its experimental part either. RLOO (arXiv 2402.14740) is what it has instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from evidence.alphabet import END
from evidence.offline import asking
from evidence.offline.characters import tokenizer
from evidence.offline.methods import Spent, Training
from evidence.sampling import LONGEST
from evidence.tasks import said


class _Waiting(TrainerCallback):
    """Lets a trainer pause before a step."""

    def __init__(self, one: Training) -> None:
        self._wait = one.wait

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Return when the step may be taken."""
        self._wait()


def _arguments(one: Training, rows: int) -> dict[str, Any]:
    """Return what the trainers have in common: the study's optimizer and schedule, a CPU, float32."""
    return {
        "output_dir": str(one.folder / "out"),
        "per_device_train_batch_size": rows,
        "max_steps": one.budget.steps,
        "learning_rate": one.rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, one.budget.steps // 10),
        "weight_decay": 0.01,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "seed": one.seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "float32"},
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": one.budget.steps,
        "disable_tqdm": True,
    }


def _run(trainer: Any, one: Training) -> None:
    """Train, and take the weights over."""
    trainer.add_callback(_Waiting(one))
    trainer.train()
    one.model.load_state_dict(trainer.model.state_dict())
    one.model.eval()


def _saved(one: Training) -> str:
    """Return a folder with the model, from which TRL reads its frozen copy, too."""
    folder = one.folder / "model"
    one.model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def dpo(one: Training) -> Spent:
    """Train on pairs of a right and a wrong answer to the same question; no answer is in two of them."""
    asked = asking.questions(one.budget.questions, one.seed)
    answered = asking.ask(one.model, asked, one.budget.tries, one.seed, one.wait)
    given = [text for asked_one in answered for text in asked_one.given]
    found = list(asking.pairs(answered, one.seed))
    spent = Spent(len(given), asking.tokens(given, LONGEST), len(found))
    if not found:
        return spent
    data = Dataset.from_list([{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in found])
    # A pair is two answers.
    arguments = DPOConfig(**_arguments(one, one.budget.rows // 2))
    trainer = DPOTrainer(_saved(one), args=arguments, train_dataset=data, processing_class=tokenizer())
    _run(trainer, one)
    both = [text for pair in found for text in (pair.chosen, pair.rejected)]
    spent.trained = one.budget.steps * one.budget.rows
    # Every pair is seen as often as any other, but for the last epoch.
    spent.trained_tokens = round(asking.tokens(both, LONGEST) * spent.trained / len(both))
    return spent


class Reward:
    """1 for an answer that ends, and is right. It counts what it is asked about."""

    __name__ = "right"

    def __init__(self) -> None:
        self.spent = Spent()

    def __call__(
        self, completions: Sequence[str], completion_ids: Sequence[Sequence[int]], truth: Sequence[str], **_: Any
    ) -> list[float]:
        """Return a reward for each answer."""
        rewards = [
            float(ids[-1] == END and said(text) == right)
            for text, ids, right in zip(completions, completion_ids, truth, strict=True)
        ]
        lengths = sum(map(len, completion_ids))
        self.spent.sampled += len(rewards)
        self.spent.trained += len(rewards)
        self.spent.sampled_tokens += lengths
        self.spent.trained_tokens += lengths
        self.spent.kept += int(sum(rewards))
        return rewards


def _reinforced(one: Training, trainer: Any, config: Any) -> Spent:
    asked, reward = asking.questions(one.budget.questions, one.seed), Reward()
    data = Dataset.from_list([{"prompt": question.prompt, "truth": question.truth} for question in asked])
    arguments = config(
        **_arguments(one, one.budget.rows),
        num_generations=one.budget.tries,
        max_completion_length=LONGEST,
    )
    made = trainer(_saved(one), reward_funcs=reward, args=arguments, train_dataset=data, processing_class=tokenizer())
    torch.manual_seed(one.seed)
    _run(made, one)
    return reward.spent


def grpo(one: Training) -> Spent:
    """Sample, reward, step: groups of answers to a question, each beside the mean of its group (arXiv 2402.03300)."""
    return _reinforced(one, GRPOTrainer, GRPOConfig)


def rloo(one: Training) -> Spent:
    """Sample, reward, step: each answer beside the mean of the others (arXiv 2402.14740)."""
    return _reinforced(one, RLOOTrainer, RLOOConfig)
