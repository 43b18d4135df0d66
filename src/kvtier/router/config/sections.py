"""A mapping of a document, with the lines to name in errors.

Why it exists: every place of an EndpointPickerConfig is read in the same few ways, and each of
them can be wrong in a way that has a line. Everything raises InvalidSettings.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.router.choose.parts import Parameters, nearest
from kvtier.settings.document import Document, KeyPath

_P = TypeVar("_P", bound=Parameters)
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([A-Za-z0-9_]+)|\[(\d+)\]")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_REQUIRED: Final = "\0"


class Section:
    """`data` stands at `path` of the document. Raises InvalidSettings where it is no mapping."""

    def __init__(self, document: Document, path: KeyPath, data: object) -> None:
        self._document = document
        self._path = path
        if not isinstance(data, Mapping):
            raise InvalidSettings(f"{document.where(path)}: {data!r} is no mapping of keys")
        self.data: Mapping[str, Any] = data

    @property
    def at(self) -> str:
        """File and line."""
        return self._document.where(self._path)

    def where(self, *keys: str) -> str:
        """File and line of what is deepest of `keys` and is there."""
        for end in range(len(keys), 0, -1):
            path = (*self._path, *keys[:end])
            if path in self._document.lines:
                return self._document.where(path)
        return self.at

    def only(self, names: Iterable[str]) -> None:
        """Refuse other keys."""
        known = tuple(names)
        for key in self.data:
            if key not in known:
                raise InvalidSettings(
                    f"{self.where(key)}: unknown key {key!r}{nearest(key, known)}"
                )

    def text(self, name: str, default: str = _REQUIRED) -> str:
        """A text that is not empty."""
        value = self.data.get(name, default)
        if value is _REQUIRED:
            raise InvalidSettings(f"{self.at}: {name} is missing")
        if not isinstance(value, str) or not value:
            raise InvalidSettings(f"{self.where(name)}: {name} is {value!r}; write a name")
        return value

    def number(self, name: str, default: float) -> float:
        """A number of 0 or more."""
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

    def items(self, name: str) -> list["Section"]:
        """The mappings of a list that has one at least."""
        value = self.data.get(name)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise InvalidSettings(f"{self.where(name)}: {name} has to be a list of one or more")
        return [
            Section(self._document, (*self._path, name, str(place)), item)
            for place, item in enumerate(value)
        ]

    def parameters(self, struct: type[_P]) -> _P:
        """`parameters`, as the plugin declares them; None is nothing set."""
        given = self.data.get("parameters")
        below = Section(self._document, (*self._path, "parameters"), {} if given is None else given)
        below._known(struct)
        try:
            return msgspec.convert(below.data, struct)
        except msgspec.ValidationError as error:
            raise InvalidSettings(below._complaint(str(error), struct)) from error

    def _known(self, struct: type[Parameters]) -> None:
        names = [field.encode_name for field in msgspec.structs.fields(struct)]
        for key in self.data:
            if key not in names:
                raise InvalidSettings(
                    f"{self.where(key)}: unknown parameter {key!r}{nearest(key, names)}"
                )

    def _complaint(self, message: str, struct: type[Parameters]) -> str:
        """A message of msgspec, with the line of the path that it ends with."""
        found = _AT.match(message)
        what, path = (found["what"], found["path"] or "") if found else (message, "")
        keys = [key or place for key, place in _STEP.findall(path)]
        unknown = _UNKNOWN.findall(what)
        near = nearest(unknown[0], _names(struct, keys)) if unknown else ""
        return f"{self.where(*keys, *unknown)}: {'.'.join(keys) or 'parameters'}: {what}{near}"


def _names(struct: type[Parameters], keys: Sequence[str]) -> list[str]:
    """What may stand at `keys` of the parameters, as far as structs go."""
    at: Any = msgspec.inspect.type_info(struct)
    for key in keys:
        if isinstance(at, msgspec.inspect.StructType):
            at = next((field.type for field in at.fields if field.encode_name == key), None)
        else:
            at = getattr(at, "item_type", at)
    return [field.encode_name for field in getattr(at, "fields", ())]
