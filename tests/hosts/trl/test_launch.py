"""What becomes of keys of accelerate's on their way to its command line."""

from __future__ import annotations

import pytest

pytest.importorskip("trl")

from dft_trl.launch import as_flags

pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--cpu", "true", "--num_processes", "2"], ["--cpu", "--num_processes", "2"]),
        (["--use_fsdp", "False", "--multi_gpu", "True"], ["--multi_gpu"]),
        (["--cpu"], ["--cpu"]),
        (["--cpu", "--mixed_precision", "no"], ["--cpu", "--mixed_precision", "no"]),
        (["--mixed_precision", "true"], ["--mixed_precision", "true"]),
    ],
    ids=str,
)
def test_an_option_without_a_value_gets_none(words, flags):
    assert as_flags(words) == flags
