"""Finding the EndpointPickerConfig of a file: the file itself, or a text inside it.

Why it exists: the field hands it over inside Helm values (`pluginsCustomConfig`) and ConfigMaps.
Invariant: lines are those of the file that was opened.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from kvtier.errors import InvalidSettings
from kvtier.router.choose.parts import nearest
from kvtier.settings.document import Document, KeyPath, parse_document

KIND: Final = "EndpointPickerConfig"
_CHOICE: Final = "pluginsConfigFile"
"""Names the text to use, where Helm values hold several."""


def extract(document: Document) -> Document:
    """The document itself, or the one inside it. Raises InvalidSettings."""
    if document.data.get("kind") == KIND:
        return document
    texts = {
        path: text for path, text in _leaves(document.data, ()) if KIND in text and "\n" in text
    }
    if not texts:
        raise InvalidSettings(f"{document.path}: there is no `kind: {KIND}` in it")
    path = _chosen(document, texts)
    # A block of text (`name: |`) begins on the line after its key.
    inner = parse_document(texts[path], document.path, document.lines[path] + 1)
    if inner.data.get("kind") != KIND:
        raise InvalidSettings(f"{document.where(path)}: the text is no `kind: {KIND}`")
    return inner


def _chosen(document: Document, texts: Mapping[KeyPath, str]) -> KeyPath:
    named = {text: path for path, text in _leaves(document.data, ()) if path[-1] == _CHOICE}
    paths = [path for path in texts if path[-1] in named or not named]
    if not paths:
        name, path = next(iter(named.items()))
        raise InvalidSettings(
            f"{document.where(path)}: {_CHOICE} is {name!r}, and no text is called so"
            f"{nearest(name, [path[-1] for path in texts])}"
        )
    if len(paths) != 1:
        names = ", ".join(path[-1] for path in texts)
        raise InvalidSettings(
            f"{document.path}: holds several of `kind: {KIND}` ({names}); "
            f"name one of them as {_CHOICE}"
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
