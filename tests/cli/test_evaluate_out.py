"""`dft evaluate --out`: what cannot be written is said before anything is evaluated."""

import pytest

from dft_plugin.cli.evaluating import Asked, run
from dft_plugin.errors import SettingsError


def test_a_folder_that_is_not_there_is_named_before_the_config_is_read(tmp_path):
    with pytest.raises(SettingsError, match=r"--out .*numbers\.json cannot be written: .*nowhere is no folder"):
        run(Asked(tmp_path / "gone.yaml", (), None, None, tmp_path / "nowhere" / "numbers.json", False))
