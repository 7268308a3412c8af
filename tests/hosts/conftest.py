"""Each host's tests are collected where that host is installed."""

from importlib.util import find_spec

collect_ignore_glob = []
if find_spec("datasets") is None:
    collect_ignore_glob += ["test_ranks.py", "transformers/*.py"]
if find_spec("trl") is None:
    collect_ignore_glob += ["trl/*.py"]
