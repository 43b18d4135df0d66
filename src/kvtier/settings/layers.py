"""Merges the sources of settings: defaults < YAML file < `KVTIER_` variables < mapping < flags.

This module alone decides which source wins, and it records where each value came from.
Invariants: nothing unknown is ignored; every error names the file and line, the variable or the
key; the result is a complete `Settings`, or InvalidSettings is raised.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from kvtier import plugins
from kvtier.errors import InvalidSettings
from kvtier.settings.compat import vllm
from kvtier.settings.document import Document, read_document
from kvtier.settings.options import OPTIONS, REQUIRED, SECTIONS, Option, SettingsSection
from kvtier.settings.tree import SettingKind, Settings

ENGINE_ORIGIN: Final = "kv_connector_extra_config"
"""The origin of a mapping that an engine passes in."""

CONFIG_VARIABLE: Final = "KVTIER_CONFIG"
"""The variable that names the YAML file if no `file` is given."""

DEFAULT_ORIGIN: Final = "default"

# Kubernetes sets these in every pod of a namespace with a service named kvtier or kvtier-*.
_SERVICE_VARIABLE = re.compile(
    r"KVTIER(_\w+)?_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
# The shell that starts an engine may also have variables of `kvtier route`.
_ROUTER_PREFIX = "KVTIER_ROUTE_"
_OFF = "none"

_PLACES: Final[tuple[Option | SettingsSection, ...]] = (
    *OPTIONS,
    *(section for section in SECTIONS.values() if section.shorthand),
)
_BY_VARIABLE: Final[Mapping[str, Option | SettingsSection]] = {
    place.variable: place for place in _PLACES
}
_BY_FLAG: Final[Mapping[str, Option | SettingsSection]] = {place.flag: place for place in _PLACES}


class Value(msgspec.Struct, frozen=True):
    """A parsed value and its source."""

    value: Any
    origin: str


class Resolved(msgspec.Struct, frozen=True):
    """The complete settings; `values` maps the name of each option to its value and origin."""

    settings: Settings
    values: Mapping[str, Value]


class _Layer(msgspec.Struct):
    """The values of one source. Sections in `off` are switched off, whatever lower layers say."""

    values: dict[str, Value] = {}
    off: set[str] = set()

    def put(self, option: Option, value: object, where: str, origin: str) -> None:
        """Parse and add a value. Raises InvalidSettings if this source sets the option twice."""
        if option.name in self.values:
            raise InvalidSettings(
                f"{where}: {option.name} is set by {self.values[option.name].origin} as well; "
                "keep one of them"
            )
        self.values[option.name] = Value(_parse(option, value, where), origin)

    def put_section(self, section: SettingsSection, value: object, where: str, origin: str) -> None:
        """Add the one-line form of a section, or switch the section off."""
        if section.optional and (value is None or value == _OFF):
            self.off.add(section.name)
            return
        fields = section.expand(value, where)
        for option in section.options:
            if option.field in fields:
                self.put(option, fields[option.field], where, origin)


def load(
    mapping: Mapping[str, Any] | None = None,
    origin: str = ENGINE_ORIGIN,
    env: Mapping[str, str] = os.environ,
    file: str | None = None,
) -> Settings:
    """Return the complete settings from all sources.

    `mapping` overrides `env`, `env` overrides `file` (or the file that `KVTIER_CONFIG` names), and
    the file overrides the defaults. `mapping` may be the extra config of an engine; vLLM's own
    offloading keys are understood in it. `origin` names the mapping in errors. Raises
    InvalidSettings.
    """
    return resolve(mapping, origin, env, file).settings


def resolve(
    mapping: Mapping[str, Any] | None = None,
    origin: str = ENGINE_ORIGIN,
    env: Mapping[str, str] = os.environ,
    file: str | None = None,
    flags: Mapping[str, str] | None = None,
) -> Resolved:
    """Return the settings as `load` does, with the origin of every value.

    `flags` maps flags such as `--ram` to their texts, and overrides everything else.
    """
    layers = []
    path = file or env.get(CONFIG_VARIABLE)
    if path:
        document = read_document(path, "--config" if file else CONFIG_VARIABLE)
        layers.append(_read_mapping(document.data, document.path, document))
    layers.append(_read_environment(env))
    layers.append(_read_mapping(vllm.translate(mapping or {}, origin), origin, None))
    layers.append(_read_texts(flags or {}, _BY_FLAG))
    return _assemble(_merge(layers))


def _read_mapping(data: Mapping[str, Any], origin: str, document: Document | None) -> _Layer:
    layer = _Layer()
    for name, value in data.items():
        where = document.where((name,)) if document else origin
        section = SECTIONS.get(name)
        if section is None:
            raise InvalidSettings(f"{where}: unknown setting {name!r}{_close(name, SECTIONS)}")
        if not isinstance(value, Mapping):
            layer.put_section(section, value, f"{where}: {name}", where)
            continue
        if not value and section.optional:
            raise InvalidSettings(
                f"{where}: {name} sets nothing; write {section.shorthand}, or none to leave it out"
            )
        options = {option.field: option for option in section.options}
        for field, content in value.items():
            at = document.where((name, field)) if document else origin
            if field not in options:
                raise InvalidSettings(
                    f"{at}: unknown setting '{name}.{field}'{_close(field, options)}"
                )
            layer.put(options[field], content, f"{at}: {name}.{field}", at)
    return layer


def _is_foreign(name: str) -> bool:
    return name.startswith(_ROUTER_PREFIX) or _SERVICE_VARIABLE.fullmatch(name) is not None


def _read_environment(env: Mapping[str, str]) -> _Layer:
    known = (*_BY_VARIABLE, CONFIG_VARIABLE)
    texts = {}
    for name in sorted(name for name in env if name.startswith("KVTIER_")):
        if name in _BY_VARIABLE:
            texts[name] = env[name]
        elif name != CONFIG_VARIABLE and not _is_foreign(name):
            raise InvalidSettings(f"unknown variable {name}{_close(name, known)}")
    return _read_texts(texts, _BY_VARIABLE)


def _read_texts(texts: Mapping[str, str], places: Mapping[str, Option | SettingsSection]) -> _Layer:
    """Read variables or flags; each names an option, or a section in its one-line form."""
    layer = _Layer()
    for name, text in texts.items():
        place = places[name]
        if isinstance(place, SettingsSection):
            layer.put_section(place, text, name, name)
        else:
            layer.put(place, text, name, name)
    return layer


def _parse(option: Option, value: object, where: str) -> Any:
    """Parse a value. Names of policies must exist, so that a typo is found here."""
    parsed = option.parse(value, where)
    if option.about.kind in (SettingKind.EVICTION, SettingKind.ADMISSION):
        try:
            plugins.load(option.about.kind.value, parsed)
        except InvalidSettings as error:
            raise InvalidSettings(f"{where}: {error}") from error
    return parsed


def _merge(layers: Iterable[_Layer]) -> dict[str, Value]:
    """Merge the layers option by option; later layers win."""
    merged: dict[str, Value] = {}
    for layer in layers:
        for name in layer.off:
            for option in SECTIONS[name].options:
                merged.pop(option.name, None)
        merged.update(layer.values)
    return merged


def _assemble(given: Mapping[str, Value]) -> Resolved:
    values: dict[str, Value] = {}
    structs: dict[str, Any] = {}
    for section in SECTIONS.values():
        named = [option.name for option in section.options if option.name in given]
        if section.optional and not named:
            continue
        fields = {}
        for option in section.options:
            found = given.get(option.name, Value(option.default, DEFAULT_ORIGIN))
            if found.value is REQUIRED:
                raise InvalidSettings(_missing(section, option, [given[name] for name in named]))
            values[option.name] = found
            fields[option.field] = found.value
        structs[section.name] = section.struct(**fields)
    return Resolved(Settings(**structs), values)


def _missing(section: SettingsSection, option: Option, given: list[Value]) -> str:
    because = f", although {given[0].origin} sets other parts of it" if given else ""
    return (
        f"{option.name} is not set{because}: give {section.flag} {section.shorthand}, "
        f"{section.variable}={section.shorthand}, or `{section.name}: {section.shorthand}` "
        "in the settings file"
    )


def _close(name: object, known: Iterable[str]) -> str:
    """Return a hint: `; did you mean 'disk'?`, or the list of known names."""
    names = tuple(known)
    matches = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known are {', '.join(names)}"
