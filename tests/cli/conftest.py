"""The commands are tested with TRL as the host, where it is installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("trl") else ["test_commands.py", "test_train.py"]
