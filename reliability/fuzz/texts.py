"""Target `texts`: bytes of a config file, YAML or JSON, read as PyYAML and `json` read them for the hosts."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from dft_plugin.config import reading
from reliability.fuzz.losses import catalogue
from reliability.fuzz.values import weighted
from reliability.fuzz.verdict import Answered, judged, require

SUFFIXES = (".yaml", ".yml", ".json", "")

SCALARS = [
    *(
        "dft",
        "nll",
        "1",
        "0.5",
        "1e-2",
        "1_000",
        "0x_",
        "0x1F",
        "0b_",
        "0b11",
        "017",
        "08",
        "1:30",
        "1:99:1.5",
        ".inf",
    ),
    *("2001-99-99", "2001-02-30 25:61:61", "2001-01-01T00:00:00.123456789+99:99", "2001-01-01t1:1:1 -0:0", "=", "~"),
    *('!!float "x"', '!!int "x"', "!!int ''", "!!bool x", "!!timestamp x", "!!null x", "!!binary é", "!!binary a"),
    *(
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!pairs [a: 1, a: 2]",
        "!!omap {a: 1}",
        "!!map [a]",
        "!!seq {a: 1}",
        "!!str {}",
    ),
    *("!!python/object/apply:os.getcwd []", "!x y", "!<tag:yaml.org,2002:int> 3", "!!merge x", "!!value x"),
    *(r'"\U00110000"', r'"\ud800"', r'"\x00"', r'"\UFFFFFFFF"', '"\\\n"', "'it''s'", "|\n  a\n", ">-\n  a\n  b\n"),
    *("&a [*a]", "*a", "&a", "{<<: {alpha: 1}}", "{<<: [*a]}", "{<<: 3}", "{? [a] : b}", "{? {a: b} : c}", "[[], {}]"),
    *("on", "No", "1e400", "-.inf", ".nan", "9" * 5000, "0x" + "f" * 5000, "1" * 400 + ".5", "\u2028", "\ufeff"),
    *(
        '{"a": 1}',
        "[1, 2",
        "}",
        "- a",
        "? a",
        ": b",
        "NaN",
        "Infinity",
        "-Infinity",
        "1.0e+5",
        "\t1",
        "@a",
        "`a`",
        "%a",
    ),
]

USUAL = ["dft", "nll", "1", "0.5", "1e-2", "true", "text", "null", '"quoted"', "[1, 2]", "{name: dft, alpha: 0.5}"]

KEYS = [
    "loss",
    "name",
    "alpha",
    "floor",
    "first",
    "weights",
    "tokens",
    "loss.alpha",
    "Loss",
    "<<",
    "1",
    "on",
    "~",
    "é",
]

FRAGMENTS = [
    *(
        "\n",
        "\n  ",
        "\n    ",
        ": ",
        "- ",
        ", ",
        "{",
        "}",
        "[",
        "]",
        "'",
        '"',
        "#",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "\t",
    ),
    *(
        "&x ",
        "*x",
        "&y ",
        "*y",
        "<<: *x\n",
        "!!",
        "|\n",
        ">\n",
        "? ",
        "\\",
        "\r\n",
        "\r",
        "\x85",
        "\ufeff",
        "\x07",
        "/*",
    ),
    *SCALARS,
    *(f"{key}: " for key in KEYS),
    *(f'"{key}": ' for key in KEYS),
]


@dataclass(frozen=True)
class Text:
    """A file.

    Attributes:
        data: what it holds.
        suffix: of its name.
    """

    data: bytes
    suffix: str


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_VALUES = st.recursive(
    weighted(
        (2, st.sampled_from(USUAL)),
        (2, st.sampled_from(SCALARS)),
        (1, st.integers().map(str)),
        (1, st.text(max_size=4).map(json.dumps)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
        st.lists(st.tuples(st.sampled_from(KEYS), inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=5,
)
_LINES = st.lists(st.tuples(st.sampled_from(KEYS), _VALUES), min_size=1, max_size=5).map(
    lambda pairs: "".join(f"{key}: {value}\n" for key, value in pairs)
)
_JSON = st.dictionaries(
    st.sampled_from(KEYS),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=4,
).map(json.dumps)


@st.composite
def _edited(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> str:
    """Draw a text, some places of which are cut out, doubled or overwritten."""
    text = draw(texts)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        to = min(len(text), at + draw(st.integers(0, 4)))
        text = text[:at] + draw(st.sampled_from(["", text[at:to] * 2, *FRAGMENTS])) + text[to:]
    return text


_MARKED = st.sampled_from([b"", b"\xff\xfe", b"\xef\xbb\xbf", b"loss: "])
_CODECS = st.sampled_from(["utf-16", "utf-32", "utf-8-sig"])
TEXTS = st.builds(
    Text,
    weighted(
        (4, _edited(_LINES).map(_encoded)),
        (2, _edited(_JSON).map(_encoded)),
        (1, st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join).map(_encoded)),
        (1, st.text(max_size=40).map(_encoded)),
        (1, st.tuples(_MARKED, st.binary(max_size=30)).map(b"".join)),
        (1, st.tuples(_LINES, _CODECS).map(lambda pair: pair[0].encode(pair[1], "surrogatepass"))),
    ),
    st.sampled_from(SUFFIXES),
)
"""Files, most of them nearly right."""


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="dft-fuzz-"))


def check(text: Text) -> str:
    """Hold a file to the property; returns `answered` or `refused`."""
    path = _folder() / f"config{text.suffix}"
    path.write_bytes(text.data)
    outcome = judged(lambda: reading.load(path), ["config"])
    if not isinstance(outcome, Answered):
        return "refused"
    run = outcome.value
    ours = {**run.host, **({"loss": run.loss} if run.names_loss else {})}
    theirs = as_hosts_read(text)
    require(
        {key: repr(value) for key, value in ours.items()} == {key: repr(value) for key, value in theirs.items()},
        f"read as {repr(ours)[:300]}, and by the hosts as {repr(theirs)[:300]}",
    )
    if not run.names_loss:
        return "answered"
    asked = judged(lambda: catalogue().settings(run.request().loss), ["`loss"])
    return "answered" if isinstance(asked, Answered) else "refused"


def as_hosts_read(text: Text) -> dict[str, Any]:
    """Return what `json` or `yaml.safe_load` makes of a file that we have taken."""
    decoded = text.data.decode("utf-8-sig")
    try:
        read = json.loads(decoded) if text.suffix in (".json", "") else yaml.safe_load(decoded)
    except ValueError:
        read = yaml.safe_load(decoded)
    return {str(key): value for key, value in read.items()}
