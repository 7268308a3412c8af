"""The hosts, the forms of a training, and the variables under which a host asks nobody for anything."""

from __future__ import annotations

from pathlib import Path

HOSTS = ("transformers", "trl", "axolotl", "llamafactory", "swift", "verl", "unsloth", "axolotl021")
FORMS = ("full", "lora")

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
}

VARIABLES: dict[str, dict[str, str]] = {
    "axolotl": {"AXOLOTL_DO_NOT_TRACK": "1", "ACCELERATE_USE_CPU": "true"},
    "axolotl021": {"AXOLOTL_DO_NOT_TRACK": "1", "ACCELERATE_USE_CPU": "true"},
    "llamafactory": {"DISABLE_VERSION_CHECK": "1"},
    "swift": {"USE_HF": "1", "MODELSCOPE_OFFLINE": "1"},
    "verl": {
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(__file__).parents[2] / "tests" / "hosts" / "verl" / "platform"),
    },
}


def variables(host: str) -> dict[str, str]:
    """Return what stands in the environment of a process of a host's."""
    return OFFLINE | VARIABLES.get(host, {})
