"""Reads a YAML settings file as plain data, with the line number of every key and list item.

Error messages name file and line, which YAML libraries do not keep. Only plain scalars, lists
and mappings with text keys are accepted, no tags and no objects. A key that occurs twice is an
error; libraries would silently take the last one.
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
    """A file's `data`, and `lines`: the path of each key -> its line, counted from 1.

    List items have the keys "0", "1", ....
    """

    path: str
    data: Mapping[str, object]
    lines: Mapping[KeyPath, int]

    def where(self, key: KeyPath) -> str:
        """Return where `key` is set, for messages: `kvtier.yaml line 3`."""
        return f"{self.path} line {self.lines[key]}" if key in self.lines else self.path


def read_document(path: str, flag: str, example: str = _EXAMPLE) -> Document:
    """Read the file that `flag` names; `example` is a valid line of it, for messages.

    Raises InvalidSettings if the file is missing, unreadable, not YAML or not a mapping.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidSettings(f"{flag}: {path} cannot be read: {reason}") from error
    return parse_document(text, path, example=example)


def parse_document(text: str, path: str, first_line: int = 1, example: str = _EXAMPLE) -> Document:
    """Parse a text that begins in line `first_line` of the file `path`; else as `read_document`."""
    try:
        loader = yaml.SafeLoader(text)
    except yaml.YAMLError as error:  # the text has a character that YAML does not allow
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
        raise InvalidSettings(f"{path}: contains {data!r} and no settings; write `{example}`")
    return Document(path, data, lines)


def _collect_lines(node: yaml.Node, at: KeyPath, path: str, lines: dict[KeyPath, int]) -> None:
    """Add the lines of all keys below `node` to `lines`; refuse repeated and non-text keys."""
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
            raise InvalidSettings(f"{path} line {line}: a key must be plain text")
        below = (*at, key.value)
        if below in lines:
            raise InvalidSettings(f"{path} line {line}: {'.'.join(below)} is set twice; keep one")
        lines[below] = line
        _collect_lines(value, below, path, lines)
