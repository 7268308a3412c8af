"""Each host's tests are collected where that host is installed."""

from importlib.util import find_spec

NEEDED = {
    "axolotl/*.py": "axolotl",
    "llamafactory/*.py": "llamafactory",
    "swift/*.py": "swift",
    "test_faults.py": "datasets",
    "test_ranks*.py": "datasets",
    "transformers/*.py": "datasets",
    "trl/*.py": "trl",
    "unsloth/*.py": "unsloth",
    "verl/*.py": "verl",
}

collect_ignore_glob = [pattern for pattern, package in NEEDED.items() if find_spec(package) is None]
