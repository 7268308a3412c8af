"""What `--data` of `dft probe` and `dft report` takes for data."""

import pytest

from dft_plugin.cli.probe import written
from dft_plugin.errors import SettingsError


@pytest.mark.parametrize(("name", "said"), [("gone.jsonl", "is not there"), ("empty.jsonl", "is empty")])
def test_a_file_that_is_not_there_or_holds_nothing_is_named(tmp_path, name, said):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SettingsError, match=said):
        written(tmp_path, "model", str(tmp_path / name))


def test_a_file_of_rows_is_read_by_its_suffix(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}')
    assert "path: json\n" in written(tmp_path, "model", str(tmp_path / "rows.jsonl")).read_text()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.jsonl", '{"text": "a"}\n\n{"text": \n', r"rows\.jsonl, line 3 is not JSON \(.*, column \d+\)"),
        ("rows.jsonl", '"text"\n', r'line 1 is no object but "text"'),
        (
            "rows.json",
            '{"question": "a", "answer": "b"}\n',
            r"has the columns `question`, `answer`. TRL reads one of: .*`prompt` with",
        ),
        ("rows.csv", "question,answer\na,b\n", r"has the columns `question`, `answer`"),
        ("rows.parquet", "no parquet", r"no Parquet file"),
    ],
)
def test_rows_that_no_trainer_could_read_are_named_before_a_model_is_loaded(tmp_path, name, text, said):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError, match=said):
        written(tmp_path, "model", str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", '\ufeff{"prompt": "a", "completion": "b", "ratio": 1}\n'),
        ("rows.json", '[\n  {"question": "a"}\n]\n'),
        ("rows.csv", "text,source\na,b\n"),
    ],
)
def test_rows_that_can_be_read_or_that_the_host_is_to_judge_pass(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert written(tmp_path, "model", str(tmp_path / name)).exists()
