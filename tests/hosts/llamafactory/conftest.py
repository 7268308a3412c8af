"""One folder with models and data for all tests of this directory."""

from __future__ import annotations

import pytest

pytest.importorskip("llamafactory")

from support import factory


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A user's folder, with a space in its name."""
    return factory.make_home(tmp_path_factory.mktemp("a user"))
