"""A user's file: JSON and YAML, encoding and size, keys that stand there twice. What is refused says where and why."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path

import pytest

from dft_plugin.config import files, reading
from dft_plugin.errors import SettingsError


@pytest.fixture
def written(tmp_path):
    def write(data, name="sft.yaml"):
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write


def problems(path):
    with pytest.raises(SettingsError) as refused:
        files.read(path)
    return [problem.replace(f"{path.parent}{os.sep}", "") for problem in refused.value.problems]


TABS = '{\n\t"loss": {\n\t\t"name": "dft",\n\t\t"alpha": 1e-1\n\t},\n\t"a\\/b": "\\ud83d\\ude00"\n}\n'


@pytest.mark.parametrize("name", ["sft.json", "sft.JSON", "sft", "sft.conf"])
def test_json_is_read_as_json_whatever_its_blanks(written, name):
    assert files.read(written(TABS, name)) == {"loss": {"name": "dft", "alpha": 0.1}, "a/b": "\U0001f600"}


@pytest.mark.parametrize("name", ["sft.yaml", "sft.yml", "sft.YML", "sft", "sft.conf"])
def test_yaml_is_read_as_yaml(written, name):
    text = "base: &base {a: 1, b: 2}\nrun: {<<: *base, b: 3}\nloss: {name: dft}\n"
    assert files.read(written(text, name))["run"] == {"a": 1, "b": 3}
    assert files.read(written("{loss: dft, on: 1e-5}", name)) == {"loss": "dft", "True": "1e-5"}


def test_a_mark_of_utf_8_is_taken(written):
    assert files.read(written(codecs.BOM_UTF8 + b"loss: dft\n")) == {"loss": "dft"}
    assert files.read(written(codecs.BOM_UTF8 + TABS.encode(), "sft.json"))["loss"]["name"] == "dft"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            "loss: dft\n".encode("utf-16"),
            "sft.yaml is UTF-16 (its first bytes are ff fe). Save it as UTF-8; if it is UTF-16: `iconv -f UTF-16 -t",
        ),
        (codecs.BOM_UTF16_BE + "loss: dft\n".encode("utf-16-be"), "sft.yaml is UTF-16 (its first bytes are fe ff)."),
        ("loss: dft\n".encode("utf-32"), "sft.yaml is UTF-32 (its first bytes are ff fe 00 00)."),
        ("loss: dft\n".encode("utf-16-le"), "sft.yaml is no text in UTF-8: byte 1, in line 1, is 0x00."),
        (
            "loss: dft\nrun: Übung\n".encode("latin-1"),
            "sft.yaml is not UTF-8: byte 15, in line 2, is 0xdc. Save it as UTF-8; if it is latin-1: "
            "`iconv -f ISO-8859-1 -t UTF-8 ",
        ),
        (codecs.BOM_UTF8 + b"loss: \xff\n", "sft.yaml is not UTF-8: byte 9, in line 1, is 0xff."),
        (b"\x1f\x8b\x08\x00 a gzip", "sft.yaml is not UTF-8: byte 1, in line 1, is 0x8b."),
    ],
    ids=["utf-16", "utf-16-be", "utf-32", "utf-16 without a mark", "latin-1", "behind a mark", "gzip"],
)
def test_another_encoding_is_named_with_byte_and_remedy(written, data, says):
    (problem,) = problems(written(data))
    assert problem.startswith(says)
    assert "Save it as UTF-8" in problem


def test_every_key_that_stands_twice_is_named_with_its_lines(written):
    path = written("loss: dft\nrun:\n  a: 1\n  b: 2\n  a: 3\nloss: nll\n")
    assert problems(path) == [
        "sft.yaml, line 5: `a` stands there twice, first in line 3, and YAML would take the last in silence. Keep "
        "one.",
        "sft.yaml, line 6: `loss` stands there twice, first in line 1, and YAML would take the last in silence. Keep "
        "one.",
    ]


def test_a_config_on_the_standard_input_is_refused():
    with pytest.raises(SettingsError, match=r"standard input could not be read again by the host\. Give the path"):
        reading.load(Path("-"), [])


def test_a_key_that_stands_twice_in_json_is_named_too(written):
    (problem,) = problems(written('{"loss": "dft",\n "a": {"b": 1},\n "loss": "nll"}', "sft.json"))
    assert problem.startswith("sft.json: `loss` stands twice in one mapping (lines 1, 3)")


def test_what_is_merged_from_elsewhere_is_not_twice(written):
    text = "one: &one {a: 1}\ntwo: &two {<<: *one, a: 2}\nthree: {<<: [*two, *one], a: 3}\nlist: [{a: 1}, {a: 2}]\n"
    assert files.read(written(text))["three"] == {"a": 3}


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("loss: [\n", "sft.yaml", "sft.yaml is not valid YAML: "),
        ("\tloss: dft\n", "sft.yaml", "Indent with spaces, not with tabs."),
        ("loss: dft: 1\n", "sft.yaml", "(line 1, column 10). Put quotes around a value that holds `: `"),
        ("a: 1\n---\nloss: dft\n", "sft.yaml", "A config is one document: remove what stands behind `---`."),
        ("loss: !!python/name:os.system\n", "sft.yaml", "Tags (`!...`) are not read: write the value itself."),
        (TABS, "sft.yaml", "It reads as JSON: name it `.json`."),
        ('{"loss": "dft",}', "sft.json", "It reads as YAML, which has comments: rename it to sft.yaml."),
        ('{"loss": "dft" "a"}', "sft.json", "(line 1, column 16). Mend that place; JSON has no comments"),
        ('{"loss": {"alpha": NaN}}', "sft.json", "sft.json is not valid JSON: it has no NaN. Give a number."),
        ("", "sft.yaml", "sft.yaml is empty. Give the path of the config that you train with."),
        (" \n", "sft.json", "sft.json is empty."),
        ("# loss: dft\n", "sft", "sft is empty."),
        ("- loss: dft\n", "sft.yaml", "sft.yaml holds a list; a config is a mapping of keys to values."),
        ('["dft"]', "sft.json", "sft.json holds a list; a config is a mapping of keys to values."),
        ("[" * 5000, "sft.json", "sft.json is nested too deep"),
        ("[" * 5000, "sft.yaml", "sft.yaml is nested too deep"),
        ("loss: 1" + ":59" * 300_000, "sft.yaml", "a number of 900,001 characters (line 1, column 7)"),
        ("loss: 0." + "1" * 30_000, "sft.yaml", "a number of 30,002 characters (line 1, column 7)"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_a_next_step(written, text, name, says):
    (problem,) = problems(written(text, name))
    assert says in problem
    assert "\n" not in problem


def test_what_is_far_too_long_is_not_read(written):
    path = written(b"loss: dft\n")
    with path.open("r+b") as file:
        file.truncate(50 << 20)
    (problem,) = problems(path)
    assert problem.startswith("sft.yaml has 50 MiB; a config has at most 1. Is it data, or a model? Give the path")


def test_what_is_no_file_is_said(tmp_path):
    assert problems(tmp_path / "no.yaml")[0].startswith("no.yaml cannot be read (No such file or directory). Give")
    (tmp_path / "folder.yaml").mkdir()
    assert problems(tmp_path / "folder.yaml")[0].startswith("folder.yaml is a folder. Give the path")
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "is a pipe or a device, which the host could not read again" in problems(tmp_path / "pipe.yaml")[0]
    assert "is no path" in problems(tmp_path / "a\0b.yaml")[0]


def test_json_and_yaml_of_the_same_settings_are_the_same(written):
    config = {"loss": {"name": "dft", "alpha": 0.5, "first": {"name": "nll", "for": 3}}, "steps": 3, "notes": "ä"}
    one = files.read(written(json.dumps(config, indent="\t"), "sft.json"))
    two = files.read(written(json.dumps(config, indent=2, ensure_ascii=False), "sft.yaml"))
    assert one == two == config
