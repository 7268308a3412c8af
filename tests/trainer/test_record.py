"""dft_loss.json as a file: written at once, read back, damaged, newer; and what of two records is another loss."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import tiny

from dft_plugin.config import record as records
from dft_plugin.config.plugins import build_catalogue, build_manager
from dft_plugin.config.record import UnreadableRecordError
from dft_plugin.errors import ConflictError
from dft_plugin.hf import resuming, tokens
from dft_plugin.hf.attachment import attach_plan
from dft_plugin.hf.record import flat, record_of
from dft_plugin.objectives import Objective

CATALOGUE = build_catalogue(build_manager(third_party=False))
HOST = {"name": "transformers", "version": "5", "trainer": "Trainer"}
RICH = {
    "name": "prift",
    "by": "mass",
    "threshold": {"from": 0.0, "to": 0.5, "until": 30},
    "first": {"name": "focal", "gamma": 3.0, "for": 0.29},
    "always_learn": [5, 6, 7, 9],
    "weights": {"column": "ratio", "tokens": [[11, 0.5], [4, 2.0]]},
    "reference": "copy",
    "log": ["top1", "entropy"],
    "scratch_mb": 64,
}


def plan_of(loss):
    read = tokens.read(CATALOGUE.plan(CATALOGUE.settings(loss)), tiny.llama())
    assert not read.problems
    return read.plan


def record(loss="dft"):
    return record_of(attach_plan(tiny.llama(), plan_of(loss)), HOST)


def kept(loss="dft", **changes):
    """As it comes back from a file."""
    return json.loads(json.dumps({**record(loss), **changes}))


@pytest.mark.parametrize("loss", ["dft", RICH, {"name": "dft", "kernel": "logits"}])
def test_the_loss_in_it_may_be_written_after_loss_again(loss):
    assert plan_of(kept(loss)["loss"]) == plan_of(loss)


def test_every_option_that_has_an_effect_is_in_it():
    for name, entry in CATALOGUE.objectives.items():
        loss = {"name": name, **({"reference": "copy"} if entry.item.reference != "none" else {})}
        written = record(loss)
        idle = set(entry.item.without_effect) - set(written["loss"])
        assert set(entry.item.model_fields) - idle <= set(written["loss"]), name
        assert plan_of(written["loss"]) == plan_of(loss), name
        assert written["source"] == entry.item.source


def test_ids_of_tokens_are_in_it():
    assert record(RICH)["tokens"] == {"always_learned": "5-7, 9", "factors": {"4": 2.0, "11": 0.5}}


def test_a_table_of_settings_has_plain_values():
    told = flat(record(RICH))
    assert told["dft_loss"].startswith("prift(by=mass, threshold=0->0.5 until step 30")
    assert told["dft_loss_first"] == "name focal, gamma 3.0, for 0.29"
    assert told["dft_loss_always_learn"] == "5, 6, 7, 9"
    assert all(isinstance(value, (str, int, float)) for value in told.values())


DIFFERENT = {
    "name": ("dft", "nll", "`name` was dft and is nll"),
    "option": ("dft", {"name": "dft", "alpha": 0.7}, "`alpha` was 1.0 and is 0.7"),
    "ramp": (
        "dft",
        {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 0.3}},
        '`alpha` was 1.0 and is {"from": 0.0, "to": 1.0, "until": 0.3}',
    ),
    "first": (
        {"name": "dft", "first": {"name": "nll", "for": 0.2}},
        "dft",
        '`first` was {"name": "nll", "for": 0.2} and is not set',
    ),
    "always": ("dft", {"name": "dft", "always_learn": [2, 3]}, "`always_learn` was not set and is 2-3"),
    "column": ("dft", {"name": "dft", "weights": {"column": "r"}}, "`weights.column` was not set and is r"),
    "factor": (
        {"name": "dft", "weights": {"tokens": [[4, 2.0]]}},
        {"name": "dft", "weights": {"tokens": [[4, 3.0]]}},
        '`weights.tokens` was {"4": 2.0} and is {"4": 3.0}',
    ),
    "reference": (
        {"name": "prift", "reference": "copy"},
        {"name": "prift", "reference": "columns"},
        "`reference` was copy and is columns",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_another_loss_or_option_is_a_difference(case):
    then, now, said = DIFFERENT[case]
    assert [str(one) for one in records.differences(kept(then), record(now), {})] == [said]


@pytest.mark.parametrize("more", [{"kernel": "logits"}, {"scratch_mb": 8}, {"log": ["top1"]}, {"resume": "allow"}])
def test_how_it_is_computed_and_logged_is_none(more):
    assert not records.differences(kept(), record({"name": "dft", **more}), {})


def test_an_option_that_an_older_version_did_not_have_was_at_its_default():
    older = kept()
    del older["loss"]["floor"]
    assert not records.differences(older, record(), {"floor": 0.0})
    (one,) = records.differences(older, record({"name": "dft", "floor": 0.5}), {"floor": 0.0})
    assert str(one) == "`floor` was 0.0 and is 0.5"


def test_the_same_tokens_in_another_order_are_the_same():
    then, now = ({"name": "dft", "always_learn": ids} for ids in ([2, 7], [7, 2]))
    assert not records.differences(kept(then), record(now), {})


def test_it_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    records.write(tmp_path, record())
    mode = (tmp_path / records.FILE).stat().st_mode
    (tmp_path / "plain").touch()
    assert mode == (tmp_path / "plain").stat().st_mode, "others may read it as they may any file"

    def fails(self, target):
        raise OSError("full")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="full"):
        records.write(tmp_path, record("nll"))
    assert records.read(tmp_path)["loss"]["name"] == "dft"
    assert {path.name for path in tmp_path.iterdir()} == {records.FILE, "plain"}


def state(place, kept, step=0):
    text = json.dumps({"global_step": step, "stateful_callbacks": {records.STATE_KEY: records.as_state(kept)}})
    (place / records.STATE_FILE).write_text(text)


def test_a_file_that_is_gone_or_damaged_is_read_from_the_state(tmp_path):
    assert records.read(tmp_path) is None
    (tmp_path / records.STATE_FILE).write_text("{}")
    assert records.read(tmp_path) is None
    state(tmp_path, record())
    assert records.read(tmp_path)["loss"]["name"] == "dft"
    (tmp_path / records.FILE).write_text('{"format": 1, "lo')
    assert records.read(tmp_path)["loss"]["name"] == "dft"


def test_a_state_that_was_handed_on_by_a_run_without_us_is_none(tmp_path):
    state(tmp_path, record(), step=1)
    assert records.read(tmp_path) is None


class TestACheckpointThatWasSavedOver:
    """A run without us saves into folders of one with us: weights and state are new, and our file is old."""

    def made(self, tmp_path, name="checkpoint-3"):
        place = tmp_path / name
        records.write(place, record())
        return place

    def test_its_record_is_not_believed(self, tmp_path):
        place = self.made(tmp_path)
        for callbacks in ({}, {records.STATE_KEY: records.as_state({**record(), "step": 2})}):
            text = json.dumps({"global_step": 3, "stateful_callbacks": callbacks})
            (place / records.STATE_FILE).write_text(text)
            with pytest.raises(UnreadableRecordError, match="without dft-plugin has saved over"):
                records.read(place)

    def test_of_two_that_differ_the_one_that_was_saved_with_the_weights_holds(self, tmp_path):
        place = self.made(tmp_path)
        state(place, record("nll"))
        assert records.read(place)["loss"]["name"] == "nll"

    @pytest.mark.parametrize("later", [-60, 60])
    def test_a_state_in_an_output_folder_is_of_its_weights_where_it_is_newer_than_the_record(self, tmp_path, later):
        place = self.made(tmp_path, "out")
        (place / records.STATE_FILE).write_text('{"global_step": 3, "stateful_callbacks": {}}')
        written = (place / records.FILE).stat().st_mtime + later
        os.utime(place / records.STATE_FILE, (written, written))
        if later < 0:
            assert records.read(place)["loss"]["name"] == "dft"
            return
        with pytest.raises(UnreadableRecordError, match="without dft-plugin has saved over"):
            records.read(place)


DAMAGED = [
    *({"tokens": [1]}, {"before": "x"}, {"computed": {"a": 1}}, {"weights": "x"}),
    *({"computed": [odd]} for odd in (1, None, "x", [], {}, {"from_step": "1"})),
    *({"before": [odd]} for odd in (1, None, "x", [], {}, {"until_step": 3, "loss": "nll"}, {"loss": None})),
    *(
        {"in_words": "\ud800"},
        {"host": {"name": "\udfff"}},
        {"before": [{"until_step": 1, "loss": {"name": "\ud800"}}]},
    ),
]


@pytest.mark.parametrize("change", DAMAGED, ids=ascii)
def test_what_was_changed_by_hand_into_another_form_is_damaged(change, tmp_path):
    found = kept()
    (found["loss"] if "weights" in change else found).update(change)
    (tmp_path / records.FILE).write_text(json.dumps(found))
    with pytest.raises(UnreadableRecordError, match="is damaged"):
        records.read(tmp_path)


def test_a_mark_before_it_does_no_harm(tmp_path):
    (tmp_path / records.FILE).write_text(json.dumps(kept()), encoding="utf-8-sig")
    assert records.read(tmp_path)["loss"]["name"] == "dft"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 1, "lo', "is damaged"),
        ("[]", "no record of dft-plugin"),
        ('{"format": 1}', "does not say which loss"),
        ('{"format": 2, "written_by": "dft-plugin 9.0"}', r"written by dft-plugin 9\.0.*format 2.*Upgrade"),
        ("\udcff", "is damaged"),
        ("[" * 100_000, "is damaged.*nested too deep"),
    ],
)
def test_what_cannot_be_used_is_said(text, said, tmp_path):
    (tmp_path / records.FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UnreadableRecordError, match=said):
        records.read(tmp_path)


class TestGoingOn:
    def go_on(self, tmp_path, loss, **how):
        return resuming.go_on(record(loss), plan_of(loss), tmp_path, 40, **{"speaks": True, **how})

    def test_with_the_same_loss_it_is_one_history(self, tmp_path, capsys):
        passes = [{"from_step": 1, "path": "logits"}]
        records.write(tmp_path, {**record(), "computed": passes})
        made = self.go_on(tmp_path, "dft")
        assert (made["computed"], made["before"]) == (passes, [])
        assert capsys.readouterr().err == ""

    def test_with_another_it_is_refused_and_both_are_said(self, tmp_path):
        records.write(tmp_path, record())
        with pytest.raises(ConflictError) as error:
            self.go_on(tmp_path, {"name": "dft", "alpha": 0.7})
        said = str(error.value)
        assert "trained with dft(alpha=1.0, floor=0.0), and this run would go on with dft(alpha=0.7" in said
        assert "`alpha` was 1.0 and is 0.7" in said
        assert "Start it with the loss of the checkpoint" in said
        assert "add `loss.resume=allow` to `dft train CONFIG`, or `resume: allow` to the options of `loss:`." in said

    def test_or_allowed_and_both_are_kept(self, tmp_path, capsys):
        records.write(tmp_path, record())
        made = self.go_on(tmp_path, {"name": "dft", "alpha": 0.7, "resume": "allow"})
        (part,) = made["before"]
        assert (part["until_step"], part["loss"]["alpha"], made["loss"]["alpha"]) == (40, 1.0, 0.7)
        assert "from step 40 on `alpha` was 1.0 and is 0.7" in capsys.readouterr().err

    def test_without_a_record_it_is_named(self, tmp_path, capsys):
        made = self.go_on(tmp_path, "dft")
        assert made["before"] == [{"until_step": 40, "loss": None}]
        said = capsys.readouterr().err
        assert f"the checkpoint {tmp_path} has no record of its loss" in said
        self.go_on(tmp_path, "dft", speaks=False)
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("text", ["{", '{"format": 2, "written_by": "dft-plugin 9.0"}'])
    def test_with_one_that_cannot_be_read_it_is_refused_or_allowed(self, text, tmp_path, capsys):
        (tmp_path / records.FILE).write_text(text)
        with pytest.raises(ConflictError, match=r"nobody can say.*resume: allow"):
            self.go_on(tmp_path, "dft")
        made = self.go_on(tmp_path, {"name": "dft", "resume": "allow"})
        assert made["before"] == [{"until_step": 40, "loss": None}]
        assert "as `resume: allow` says" in capsys.readouterr().err


class Strange(Objective):
    name = "strange"
    summary = "w = 1"
    source = "nowhere"
    powers: tuple[float, ...] = (1.0, 2.0)

    def weight(self, rows):
        return rows.logp_T.new_ones(rows.logp_T.shape)


def test_an_objective_that_is_an_object_is_recorded_and_compared():
    from dft_plugin.plans import plan_for

    made, other = (
        record_of(attach_plan(tiny.llama(), plan_for(one, CATALOGUE)), HOST)
        for one in (Strange(), Strange(powers=(1.0, 3.0)))
    )
    assert made["loss"]["powers"] == [1.0, 2.0]
    back = json.loads(json.dumps(made))
    assert not records.differences(back, made, {})
    assert [one.key for one in records.differences(back, other, {})] == ["powers"]


def test_the_page_shows_a_record_as_it_is():
    page = (Path(__file__).parents[2] / "docs" / "recording.md").read_text()
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    loss = {"name": "dft", "alpha": {"from": 0.0, "to": 1.0, "until": 0.3}, "always_learn": ["eos"]}
    model = tiny.llama()
    read = tokens.read(CATALOGUE.plan(CATALOGUE.settings(loss)), model)
    ours = record_of(attach_plan(model, read.plan), HOST)
    assert ours.keys() == shown.keys()
    # What `eos` comes to, the tokenizer says.
    same = "format", "in_words", "loss", "formula", "source"
    assert {key: shown[key] for key in same} == {key: ours[key] for key in same}
    assert shown["versions"].keys() == ours["versions"].keys()


def test_beside_new_weights_no_record_of_others_stays(tmp_path):
    resource = pytest.importorskip("resource")
    records.write(tmp_path, {"loss": {"name": "nll"}})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            records.write_beside_weights(tmp_path, {"loss": {"name": "dft"}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
