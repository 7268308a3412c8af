"""What needs a host's packages is collected only where they are."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("datasets") else ["test_installed_host.py"]
