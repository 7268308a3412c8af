"""The project's checks, each in an environment of its own: `nox -t ci` runs what CI runs, `make test` two at a time.

The sessions stand in `sessions/`.
"""

import os
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.tags = ["ci"]
# Sessions of other Pythons are left out, and nox says so, where there is none.
nox.options.error_on_missing_interpreters = False

os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
if "PYTHONDONTWRITEBYTECODE" not in os.environ:
    # Most of what is installed is never imported; what is compiles once, at its first import.
    os.environ.setdefault("PIP_NO_COMPILE", "1")

# The command `nox` does not look for modules beside this file.
sys.path.insert(0, str(Path(__file__).parent))

from sessions import core, hosts, on_demand  # noqa: E402

__all__ = ["core", "hosts", "on_demand"]
