"""The folder that `dft reference` writes: begun, gone on with, and refused."""

from __future__ import annotations

import pytest

from dft_plugin.errors import ConflictError
from dft_plugin.hf.shards import MANIFEST, Folder, write

ROWS = {"input_ids": [[1, 2]] * 3, "labels": [[-100, 2]] * 3, "ref_logp": [[float("nan"), -1.0]] * 3}


def folder(path, **made_of):
    return Folder(path, {"model": "one", **made_of}, {"train": 3}, 3)


def test_what_was_ended_before_its_first_row_is_begun_again(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "out" / "data").mkdir(parents=True)
    (shard,) = folder(tmp_path / "out").open()
    write(shard, ROWS)
    assert folder(tmp_path / "out").open() == []


@pytest.mark.parametrize("inside", ["notes.txt", "data/rows.parquet", "data"])
def test_a_folder_of_somebody_elses_is_left_alone(inside, tmp_path):
    path = tmp_path / inside
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ConflictError, match="is there already, and `dft reference` has not made it"):
        folder(tmp_path).open()
    assert path.read_text() == "mine"


def test_of_a_damaged_manifest_nobody_knows_of_what_the_rows_are(tmp_path):
    folder(tmp_path).open()
    (tmp_path / MANIFEST).write_text('{"made_of"')
    with pytest.raises(ConflictError, match=r"is damaged .* Give another folder: --out"):
        folder(tmp_path).open()


def test_where_nothing_can_be_written_the_folder_is_named(tmp_path):
    (tmp_path / "sft.yaml").write_text("")
    with pytest.raises(ConflictError, match=r"sft.yaml/out cannot be written .* Give another folder: --out"):
        folder(tmp_path / "sft.yaml" / "out").open()


def test_what_was_made_of_something_else_says_what(tmp_path):
    folder(tmp_path).open()
    with pytest.raises(ConflictError, match="model: one there, two here"):
        folder(tmp_path, model="two").open()
