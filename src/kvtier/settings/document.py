"""A YAML settings file as plain data, with the line of every key and every item of a list.

Why it exists: an error must name file and line, and YAML readers forget both. Only plain
scalars, lists and mappings with text keys are read (no tags, no objects); a key that stands
twice is an error, since readers would silently take the last.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import yaml

from kvtier.errors import InvalidSettings

KeyPath = tuple[str, ...]

_EXAMPLE: Final = "ram: 20GiB"


class Document(msgspec.Struct, frozen=True):
    """`data` as written; `lines` maps the path of each key to its line, counted from 1.

    The items of a list are keys as well: "0", "1", ...
    """

    path: str
    data: Mapping[str, object]
    lines: Mapping[KeyPath, int]

    def where(self, key: KeyPath) -> str:
        """`kvtier.yaml line 3`."""
        return f"{self.path} line {self.lines[key]}" if key in self.lines else self.path


def read_document(path: str, flag: str, example: str = _EXAMPLE) -> Document:
    """Read the file that `flag` names; `example` is a line that may stand in it.

    Raises InvalidSettings: missing, unreadable, not YAML, not a mapping.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidSettings(f"{flag}: {path} cannot be read: {reason}") from error
    return parse_document(text, path, example=example)


def parse_document(text: str, path: str, first_line: int = 1, example: str = _EXAMPLE) -> Document:
    """As `read_document`, of a text that stands in the file `path` from `first_line` on."""
    try:
        loader = yaml.SafeLoader(text)
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise InvalidSettings(f"{path}: not valid YAML: {error}") from error
    loader.line = first_line - 1
    lines: dict[KeyPath, int] = {}
    try:
        root = loader.get_single_node()
        if root is None:
            return Document(path, {}, {})
        _collect_lines(root, (), path, lines)
        data = loader.construct_document(root)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise InvalidSettings(f"{path}{line}: not valid YAML: {problem}") from error
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise InvalidSettings(f"{path}: holds {data!r} and not settings; write `{example}`")
    return Document(path, data, lines)


def _collect_lines(node: yaml.Node, at: KeyPath, path: str, lines: dict[KeyPath, int]) -> None:
    """Fill `lines` below `node`; refuse keys that repeat or are not text."""
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            below = (*at, str(place))
            lines[below] = item.start_mark.line + 1
            _collect_lines(item, below, path, lines)
        return
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InvalidSettings(f"{path} line {line}: a key has to be plain text")
        below = (*at, key.value)
        if below in lines:
            raise InvalidSettings(f"{path} line {line}: {'.'.join(below)} is set twice; keep one")
        lines[below] = line
        _collect_lines(value, below, path, lines)
