"""LLaMA-Factory's v1 trainer: losses that change during the run, and those that it cannot divide."""

from __future__ import annotations

import pytest

pytest.importorskip("llamafactory")

from support import factory

if factory.OLD:
    pytest.skip("its v1 trainer is another one, and refused", allow_module_level=True)

from support import factory_v1

from dft_plugin.errors import ConflictError

pytestmark = [pytest.mark.host, *factory_v1.WARNS]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return factory_v1.make_home(tmp_path_factory.mktemp("home"))


def test_each_step_has_the_loss_of_its_time_and_the_log_says_it(home, tmp_path):
    ramp = {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 1.0}}
    run = factory_v1.train(factory_v1.arguments(home, tmp_path, max_steps=4, micro_batch_size=2), ramp)
    assert [entry["dft/alpha"] for entry in run.logs] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert run.logs[0]["dft/loss"] == pytest.approx(run.logs[0]["dft/nll"])
    weights = [entry["dft/mean_weight"] for entry in run.logs]
    assert weights[0] == 1 > weights[1]


def test_what_divides_by_more_than_tokens_is_refused_before_anything_is_started(home, tmp_path):
    with pytest.raises(ConflictError, match=r"thresholded divides by .*, which LLaMA-Factory's v1 trainer"):
        factory_v1.train(factory_v1.arguments(home, tmp_path), "thresholded")


def test_the_end_of_the_first_loss_is_told_of_once(home, tmp_path, capfd):
    first = {"name": "dft", "first": {"name": "nll", "for": 2}}
    run = factory_v1.train(factory_v1.arguments(home, tmp_path, max_steps=4, micro_batch_size=2), first)
    assert [entry["dft/mean_weight"] == 1 for entry in run.logs] == [True, True, False, False]
    said = "dft: loss: nll until step 2, dft(alpha=1.0, floor=0.0) from here on\n"
    assert capfd.readouterr().err.count(said) == 1
