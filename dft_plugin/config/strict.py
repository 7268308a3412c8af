"""PyYAML's safe loader, made strict: keys that stand twice, aliases without end, words that are no number."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOST_LETTERS = 1 << 23
"""Letters of a document with what its aliases stand for written out: eight times the largest file that is read."""

_MOST_BITS = 14_000
"""Of an integer: what is longer (4300 digits) Python refuses to write down again."""

_MOST_DIGITS = 20_000
"""Of a number as it is written, in base 2 or 60 too: the time that one takes grows with the square of its length."""

_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})


class StrictLoader(yaml.SafeLoader):
    """Notes keys that stand twice in one mapping, and refuses as invalid YAML what would break its readers.

    It looks at what was written, before `<<` merges other mappings into it.

    Attributes:
        twice: keys that stand twice, with both lines.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[tuple[str, int, int]] = []

    def get_single_node(self) -> Any:
        """Compose the document, and look how long it is."""
        node = super().get_single_node()
        if node is not None:
            _require_bounded(node, {})
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose, and look through the keys."""
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            # `<<` too: of two, the last would win, and of a list of mappings (`<<: [*a, *b]`) the first does.
            if not isinstance(key, ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in first:
                self.twice.append((key.value, first[key.tag, key.value], line))
            first.setdefault((key.tag, key.value), line)
        return node

    def scan_flow_scalar_non_spaces(self, double: bool, start_mark: Any) -> Any:
        r"""Scan a part of a quoted text; PyYAML turns `"\U00110000"` into a character with Python's `chr`."""
        mark = self.get_mark()
        try:
            return super().scan_flow_scalar_non_spaces(double, start_mark)
        except (ValueError, OverflowError) as error:
            raise yaml.scanner.ScannerError(None, None, "there is no such character", mark) from error

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Make the value of a node.

        PyYAML hands what has the form of a number, a date or a truth value (`0x_`, `2026-13-40`, `!!bool x`) to
        Python, which refuses it with errors of its own.
        """
        if node.tag in _NUMBERS and isinstance(node, ScalarNode) and len(node.value) > _MOST_DIGITS:
            raise ConstructorError(None, None, f"a number of {len(node.value):,} characters", node.start_mark)
        try:
            made = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError, TypeError) as error:
            said = str(node.value) if isinstance(node, ScalarNode) else "what stands here"
            said = said if len(said) <= 60 else f"{said[:60]}..."
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(
                None, None, f"{said!r} has the form of {kind!r} and is none; quote it", node.start_mark
            ) from error
        if isinstance(made, int) and made.bit_length() > _MOST_BITS:
            raise ConstructorError(None, None, "an integer of more than 4300 digits", node.start_mark)
        return made


def _require_bounded(node: Node, lengths: dict[Node, int | None]) -> int:
    """Return how many letters a node has, its aliases written out: nine of nine of nine make a file of 1 kB endless.

    Args:
        node: what was composed; one that an alias names is the same object in several places.
        lengths: of the nodes that were looked at; None while one is.
    """
    known = lengths.get(node, 0)
    if known is None:
        raise ConstructorError(None, None, "an alias stands inside what it names", node.start_mark)
    if node in lengths:
        return known
    lengths[node] = None
    length = 1
    if isinstance(node, ScalarNode):
        length += len(node.value)
    elif isinstance(node, SequenceNode):
        length += sum(_require_bounded(one, lengths) for one in node.value)
    elif isinstance(node, MappingNode):
        length += sum(_require_bounded(one, lengths) for pair in node.value for one in pair)
    if length > MOST_LETTERS:
        said = "its aliases make it too long: written out, 8 MiB are allowed"
        raise ConstructorError(None, None, said, node.start_mark)
    lengths[node] = length
    return length
