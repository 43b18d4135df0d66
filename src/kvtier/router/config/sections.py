"""Access to the sections of an EndpointPickerConfig, with errors that name file and line.

`extract` finds the EndpointPickerConfig in a file, which may be embedded in Helm values
(`pluginsCustomConfig`) or a ConfigMap. `ConfigSection` reads one mapping of it. Both raise
InvalidSettings. Invariant: line numbers are those of the file that was opened.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.router.choose.plugins import PluginParameters, nearest
from kvtier.settings.document import Document, KeyPath, parse_document

_P = TypeVar("_P", bound=PluginParameters)
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([A-Za-z0-9_]+)|\[(\d+)\]")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_REQUIRED: Final = "\0"


class ConfigSection:
    """A mapping at `path` of a document. Raises InvalidSettings if `data` is not a mapping."""

    def __init__(self, document: Document, path: KeyPath, data: object) -> None:
        self._document = document
        self._path = path
        if not isinstance(data, Mapping):
            raise InvalidSettings(f"{document.where(path)}: {data!r} is not a mapping")
        self.data: Mapping[str, Any] = data

    @property
    def at(self) -> str:
        """The section's file and line."""
        return self._document.where(self._path)

    def where(self, *keys: str) -> str:
        """Return the file and line of the deepest existing element along the path `keys`."""
        for end in range(len(keys), 0, -1):
            path = (*self._path, *keys[:end])
            if path in self._document.lines:
                return self._document.where(path)
        return self.at

    def only(self, names: Iterable[str]) -> None:
        """Raise InvalidSettings if the section has keys other than `names`."""
        known = tuple(names)
        for key in self.data:
            if key not in known:
                raise InvalidSettings(
                    f"{self.where(key)}: unknown key {key!r}{nearest(key, known)}"
                )

    def text(self, name: str, default: str = _REQUIRED) -> str:
        """Return a non-empty string; it is required unless there is a default."""
        value = self.data.get(name, default)
        if value is _REQUIRED:
            raise InvalidSettings(f"{self.at}: {name} is missing")
        if not isinstance(value, str) or not value:
            raise InvalidSettings(f"{self.where(name)}: {name} is {value!r}; write a name")
        return value

    def number(self, name: str, default: float) -> float:
        """Return a finite number of 0 or more."""
        value = self.data.get(name, default)
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not (0 <= value < math.inf)
        ):
            raise InvalidSettings(
                f"{self.where(name)}: {name} is {value!r}; write a number of 0 or more"
            )
        return float(value)

    def items(self, name: str) -> list["ConfigSection"]:
        """Return the mappings in a non-empty list."""
        value = self.data.get(name)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise InvalidSettings(f"{self.where(name)}: {name} must be a non-empty list")
        return [
            ConfigSection(self._document, (*self._path, name, str(place)), item)
            for place, item in enumerate(value)
        ]

    def parameters(self, struct: type[_P]) -> _P:
        """Return the subsection `parameters` as a plugin's struct; it may be absent or null."""
        given = self.data.get("parameters")
        below = ConfigSection(
            self._document, (*self._path, "parameters"), {} if given is None else given
        )
        below._known(struct)
        try:
            return msgspec.convert(below.data, struct)
        except msgspec.ValidationError as error:
            raise InvalidSettings(below._complaint(str(error), struct)) from error

    def _known(self, struct: type[PluginParameters]) -> None:
        names = [field.encode_name for field in msgspec.structs.fields(struct)]
        for key in self.data:
            if key not in names:
                raise InvalidSettings(
                    f"{self.where(key)}: unknown parameter {key!r}{nearest(key, names)}"
                )

    def _complaint(self, message: str, struct: type[PluginParameters]) -> str:
        """Return an error message of msgspec with the file and line of the path it contains."""
        found = _AT.match(message)
        what, path = (found["what"], found["path"] or "") if found else (message, "")
        keys = [key or place for key, place in _STEP.findall(path)]
        unknown = _UNKNOWN.findall(what)
        near = nearest(unknown[0], _names(struct, keys)) if unknown else ""
        return f"{self.where(*keys, *unknown)}: {'.'.join(keys) or 'parameters'}: {what}{near}"


def _names(struct: type[PluginParameters], keys: Sequence[str]) -> list[str]:
    """Return the field names of the struct at `keys` within the parameters."""
    at: Any = msgspec.inspect.type_info(struct)
    for key in keys:
        if isinstance(at, msgspec.inspect.StructType):
            at = next((field.type for field in at.fields if field.encode_name == key), None)
        else:
            at = getattr(at, "item_type", at)
    return [field.encode_name for field in getattr(at, "fields", ())]


KIND: Final = "EndpointPickerConfig"
_CHOICE: Final = "pluginsConfigFile"
"""The Helm value that names the embedded text to use, if there are several."""


def extract(document: Document) -> Document:
    """Return the document itself if it is an EndpointPickerConfig, or the one embedded in it.

    Raises InvalidSettings if there is none, or more than one without a choice between them.
    """
    if document.data.get("kind") == KIND:
        return document
    texts = {
        path: text for path, text in _leaves(document.data, ()) if KIND in text and "\n" in text
    }
    if not texts:
        raise InvalidSettings(f"{document.path}: contains no `kind: {KIND}`")
    path = _chosen(document, texts)
    # A block scalar (`name: |`) starts on the line after its key.
    inner = parse_document(texts[path], document.path, document.lines[path] + 1)
    if inner.data.get("kind") != KIND:
        raise InvalidSettings(f"{document.where(path)}: the text is not of `kind: {KIND}`")
    return inner


def _chosen(document: Document, texts: Mapping[KeyPath, str]) -> KeyPath:
    named = {text: path for path, text in _leaves(document.data, ()) if path[-1] == _CHOICE}
    paths = [path for path in texts if path[-1] in named or not named]
    if not paths:
        name, path = next(iter(named.items()))
        raise InvalidSettings(
            f"{document.where(path)}: {_CHOICE} is {name!r}, but there is no such text"
            f"{nearest(name, [path[-1] for path in texts])}"
        )
    if len(paths) != 1:
        names = ", ".join(path[-1] for path in texts)
        raise InvalidSettings(
            f"{document.path}: contains several of `kind: {KIND}` ({names}); "
            f"set {_CHOICE} to one of them"
        )
    return paths[0]


def _leaves(data: object, at: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(data, str):
        yield at, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _leaves(value, (*at, str(key)))
    elif isinstance(data, list):
        for place, value in enumerate(data):
            yield from _leaves(value, (*at, str(place)))
