"""ms-swift's own `enable_dft_loss` where it trains something else, in silence."""

from __future__ import annotations

import pytest
from support import tiny

pytest.importorskip("swift")

from support import oracle, swift_runs

pytestmark = pytest.mark.host

DROPS_IT = {"loss_type": {"loss_type": "cross_entropy"}, "label_smoothing": {"label_smoothing_factor": 0.1}}


@pytest.mark.parametrize("setting", DROPS_IT)
def test_beside_this_setting_enable_dft_loss_changes_nothing(setting, home, tmp_path):
    def train(name, **changes):
        given = swift_runs.config(home, tmp_path / name, **DROPS_IT[setting], **changes, max_steps=1)
        return swift_runs.train(given, weight=oracle.nll)

    without, asked = train("without"), train("asked", enable_dft_loss=True)
    assert asked.losses == without.losses
    assert tiny.max_gap(asked.after, without.after) == 0
    if setting == "loss_type":
        assert asked.losses[0] == pytest.approx(asked.expected, rel=1e-6), "it is not cross-entropy"
    alone = swift_runs.train(swift_runs.config(home, tmp_path / "alone", enable_dft_loss=True, max_steps=1))
    assert tiny.max_gap(asked.after, alone.after) > 1e-2


def test_smoothed_it_also_grows_with_the_number_of_micro_batches(home, tmp_path):
    def first(name, **changes):
        given = swift_runs.config(home, tmp_path / name, **DROPS_IT["label_smoothing"], **changes, max_steps=1)
        return swift_runs.train(given).losses[0]

    whole = first("whole")
    split = first("split", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert split == pytest.approx(4 * whole, rel=0.1)


@pytest.mark.full
def test_two_ranks_on_cpus_log_another_loss_unless_they_are_told_that_they_are_cpus(home, tmp_path):
    """Where there is no GPU, so that `use_cpu` should change nothing."""

    def first(name, ranks, **changes):
        # One rank sees the rows of a step at once, two see half of them each.
        given = swift_runs.config(home, tmp_path / name, **changes, per_device_train_batch_size=4 // ranks)
        swift_runs.write(tmp_path / f"{name}.yaml", **{**given, "max_steps": 1, "save_strategy": "steps"})
        environment = {"NPROC_PER_NODE": str(ranks)} if ranks > 1 else {}
        done = swift_runs.command("sft", f"{name}.yaml", cwd=tmp_path, environment=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return swift_runs.history(tmp_path / name)[0]["loss"]

    one = first("one", 1)
    assert first("told", 2) == pytest.approx(one, rel=1e-5)
    assert first("not-told", 2, use_cpu=False) != pytest.approx(one, rel=0.03)
