"""ms-swift on tiny models and tiny data: a user's folder, runs in this process, runs of its command."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from dft_swift.run import run_with_loss
from support import oracle, tiny, training
from support.ran import Run

ENVIRONMENT = {
    "USE_HF": "1",
    "MODELSCOPE_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
"""Under which ms-swift asks nobody for anything. It reads some of it when it is imported."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"

CHAT = ["<|im_start|>", "<|im_end|>"]

WIDTH = {"hidden_size": 64, "intermediate_size": 96}
"""bitsandbytes quantises blocks of 64 weights."""

LORA = {"tuner_type": "lora", "lora_rank": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.0}


def make_home(home: Path) -> Path:
    """Write models and data sets; ms-swift is started in this folder."""
    words = tokenizer()
    shape = {**tiny.SHAPE, **WIDTH, "vocab_size": len(words)}
    made = {}
    for name, tied in (("qwen2", False), ("tied", True)):
        torch.manual_seed(0)
        made[name] = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=tied))
    torch.manual_seed(0)
    router = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    made["moe"] = Qwen2MoeForCausalLM(Qwen2MoeConfig(**shape, **router, shared_expert_intermediate_size=32))
    for name, model in made.items():
        model.save_pretrained(home / name)
        words.save_pretrained(home / name)
    sets = {"plain": plain_rows(), "chat": chat_rows(), "held-out": plain_rows(10, seed=1), "texts": text_rows()}
    for name, rows in sets.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def tokenizer() -> Any:
    """One token for each byte, and those that open and close a turn; of a kind that Qwen2's configs ask for."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    # Letters first: `support.kinds` treats some small ids apart.
    letters, every = list(LETTERS), sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = ["<pad>", "<s>", "</s>", *letters, *(byte for byte in every if byte not in letters)]
    vocab = {word: number for number, word in enumerate(plain)}
    made = Qwen2Tokenizer(vocab=vocab, merges=[], pad_token="<pad>", unk_token="<pad>", eos_token="</s>")
    made.add_special_tokens({"extra_special_tokens": CHAT})
    return made


def plain_rows(count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of different lengths, so that micro-batches count different numbers of targets."""
    pick = random.Random(seed)
    return [_chat(pick, [pick.randint(2, 6), pick.randint(1, 14)]) for _ in range(count)]


def chat_rows(count: int = 24) -> list[dict[str, Any]]:
    """Conversations of two turns."""
    pick = random.Random(2)
    return [_chat(pick, [pick.randint(1, 8) for _ in range(4)]) for _ in range(count)]


def text_rows(count: int = 24) -> list[dict[str, Any]]:
    """Texts for `swift pt`."""
    pick = random.Random(3)
    return [{"messages": [{"role": "assistant", "content": _words(pick, pick.randint(3, 16))}]} for _ in range(count)]


def _chat(pick: random.Random, lengths: list[int]) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": _words(pick, n)} for at, n in enumerate(lengths)]}


def _words(pick: random.Random, count: int) -> str:
    return " ".join(pick.choice(LETTERS) for _ in range(count))


def config(home: Path, out: Path, model: str = "qwen2", **changes: Any) -> dict[str, Any]:
    """A YAML under which a step shows its whole gradient: SGD, a rate of 1, nothing clipped or decayed."""
    return {
        "model": str(home / model),
        "model_type": "qwen2",
        "template": "chatml",
        "dataset": [str(home / "plain.jsonl")],
        "tuner_type": "full",
        "torch_dtype": "float32",
        "max_length": 128,
        "split_dataset_ratio": 0,
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "check_model": False,
        "output_dir": str(out),
        "add_version": False,
        "report_to": ["none"],
        "save_strategy": "no",
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 42,
        **changes,
    }


def words(given: dict[str, Any]) -> list[str]:
    """Write a YAML as ms-swift's command line would."""
    from swift.cli.main import parse_yaml_args

    path = Path(given["output_dir"]).with_suffix(".words.json")
    path.write_text(json.dumps(given))
    argv = [str(path)]
    with mock.patch.dict(os.environ):
        parse_yaml_args(argv)
    return argv


def train(
    given: dict[str, Any],
    loss: Any = None,
    prepare: Callable[[Any], None] = lambda trainer: None,
    main: str = "sft_main",
    weight: oracle.Weight = oracle.dft,
) -> Run:
    """Run one of ms-swift's main functions here.

    Args:
        given: its YAML.
        loss: what stands after `loss:`; None trains ms-swift's own.
        prepare: called with the trainer, before the loss is activated.
        main: of `swift.pipelines`.
        weight: of the loss that is expected.
    """
    import swift.pipelines
    from swift.trainers.seq2seq_trainer import Seq2SeqTrainer

    run = Run()
    token_losses: list[Tensor] = []
    init, step = Seq2SeqTrainer.__init__, Seq2SeqTrainer.training_step

    def spying_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        run.trainer = self
        run.before = training.trained(self.model)
        prepare(self)

    def spying_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 0:
            run.batches.append(dict(inputs))
            token_losses.append(_token_losses(model, inputs, weight))
            run.expected = float(torch.cat(token_losses).mean())
        return step(self, model, inputs, *args, **kwargs)

    function = getattr(swift.pipelines, main)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Seq2SeqTrainer, "__init__", spying_init))
        stack.enter_context(mock.patch.object(Seq2SeqTrainer, "training_step", spying_step))
        if loss is None:
            function(words(given))
        else:
            run_with_loss(function, words(given), loss)
    return run


def _token_losses(model: Any, inputs: Any, weight: oracle.Weight) -> Tensor:
    """Losses of all targets of a micro-batch: position t predicts the label of t + 1."""
    model.train()
    # bitsandbytes has another kernel without gradients, so this runs with them.
    logits = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits
    return oracle.token_losses(logits[:, :-1], inputs["labels"][:, 1:], weight).detach()


def write(path: Path, **given: Any) -> Path:
    path.write_text(yaml.safe_dump(given))
    return path


def command(
    *words: str, cwd: Path, environment: dict[str, str] | None = None, script: str = "swift"
) -> subprocess.CompletedProcess[str]:
    """Start one of the commands of this environment, as a user would."""
    binaries = Path(sys.executable).parent
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(binaries / script), *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT, "PATH": path, "COLUMNS": "200", **(environment or {})},
        check=False,
    )


def history(out: Path) -> list[dict[str, float]]:
    """The training logs that a finished run has saved."""
    lines = [json.loads(line) for line in (out / "logging.jsonl").read_text().splitlines()]
    return [entry for entry in lines[-1]["log_history"] if "loss" in entry]
