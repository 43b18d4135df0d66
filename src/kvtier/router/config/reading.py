"""EndpointPickerConfig, read as it is: both generations of its API, alone or inside Helm values.

Why it exists: whoever comes from llm-d or the Gateway API Inference Extension keeps their file.
Invariants: an unknown plugin or parameter is an error that names file and line, with the nearest
name; a section or plugin that does nothing here is a warning that says so; what comes out is
data, and making parts from it (`profile.build`) cannot fail for the file's sake.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.router.choose import plugins
from kvtier.router.config import compatibility as field
from kvtier.router.config import gauges as engines
from kvtier.router.config.indexes import IndexSpec, IndexWiring
from kvtier.router.config.sections import KIND, ConfigSection, extract
from kvtier.router.learn.gauges import GaugeNames
from kvtier.settings.document import Document, parse_document, read_document

VERSIONS: Final = ("inference.networking.x-k8s.io/v1alpha1", "llm-d.ai/v1alpha1")
"""Of the API: the older and the newer generation."""

DEFAULT: Final = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: expected-ttft-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: expected-ttft-scorer
"""
"""What chooses where no file is given."""

_EXAMPLE: Final = f"kind: {KIND}"

IMPLIED_PICKER: Final = "(max-score-picker)"
"""The picker where none is declared; nobody would call a plugin so."""

_ONLY: Final = "default"
"""The profile of a file that has none."""

_TOP: Final = ("apiVersion", "kind", "plugins", "schedulingProfiles", *field.SECTIONS)


class PluginSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One instance of a scorer, filter or picker, not yet made."""

    type: str
    name: str
    kind: plugins.PluginKind
    plugin: Any
    """The class."""
    parameters: plugins.PluginParameters
    index: str | None
    """None: it looks at all, or at none."""
    tier: str | None
    where: str
    """File and line."""


class ProfileSpec(msgspec.Struct, frozen=True, kw_only=True):
    """GaugeNames of plugins, in the order of the file."""

    name: str
    filters: tuple[str, ...]
    scorers: tuple[tuple[str, float], ...]
    """With their weights."""
    picker: str


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What a file asks for."""

    path: str
    plugins: Mapping[str, PluginSpec]
    profiles: Mapping[str, ProfileSpec]
    """The first is the default."""
    indexes: Mapping[str, IndexSpec]
    warnings: tuple[str, ...]
    """What does nothing here, with file and line."""
    gauges: GaugeNames = GaugeNames()
    """Of the replicas' metrics."""


def read_configuration(path: str | None, flag: str = "--profile") -> Configuration:
    """The file's that `flag` names, or the default's for None. Raises InvalidSettings."""
    if path is None:
        return parse_configuration(DEFAULT, "the default profile")
    return _configuration(extract(read_document(path, flag, _EXAMPLE)))


def parse_configuration(text: str, path: str) -> Configuration:
    """As `read_configuration`, of a text; `path` is its name in errors."""
    return _configuration(extract(parse_document(text, path, example=_EXAMPLE)))


def _configuration(document: Document) -> Configuration:
    top = ConfigSection(document, (), document.data)
    top.only(_TOP)
    version = top.text("apiVersion")
    if version not in VERSIONS:
        raise InvalidSettings(
            f"{top.where('apiVersion')}: {version!r} is no version of EndpointPickerConfig"
            f"{plugins.nearest(version, VERSIONS)}"
        )
    warnings = [
        f"{top.where(name)}: {name} is ignored: {why}"
        for name, why in field.SECTIONS.items()
        if name in top.data
    ]
    wiring = IndexWiring(newer=version == VERSIONS[1])
    declared: dict[str, _Declared | None] = {}
    gauges = GaugeNames()
    for section in top.items("plugins"):
        name, plugin = _declare(section, wiring, warnings)
        gauges = _named(section, gauges)
        if name in declared:
            raise InvalidSettings(
                f"{section.at}: a second plugin called {name!r}; give it a name of its own"
            )
        declared[name] = plugin
    profiles = _profiles(top, declared, warnings)
    if any(one.picker == IMPLIED_PICKER for one in profiles.values()):
        declared[IMPLIED_PICKER] = _implied_picker()
    made = {name: one.resolved(name, wiring) for name, one in declared.items() if one}
    return Configuration(
        path=document.path,
        plugins=made,
        profiles=profiles,
        indexes=wiring.specs([(one.index, one.tier) for one in made.values()]),
        warnings=tuple(warnings),
        gauges=gauges,
    )


class _Declared(msgspec.Struct, frozen=True):
    """A plugin whose index may be declared further down in the file."""

    type: str
    kind: plugins.PluginKind
    plugin: Any
    parameters: plugins.PluginParameters
    where: str

    def resolved(self, name: str, wiring: IndexWiring) -> PluginSpec:
        """With the index and tier that it looks at."""
        index, tier = wiring.index_and_tier(name, self.parameters, self.where)
        return PluginSpec(
            type=self.type,
            name=name,
            kind=self.kind,
            plugin=self.plugin,
            parameters=self.parameters,
            index=index,
            tier=tier,
            where=self.where,
        )


def _declare(
    section: ConfigSection, wiring: IndexWiring, warnings: list[str]
) -> tuple[str, _Declared | None]:
    """One of `plugins`; None for what is no part of choosing."""
    section.only(("type", "name", "parameters"))
    plugin_type = section.text("type")
    name = section.text("name", plugin_type)
    where = section.where("type")
    if plugin_type in field.SILENT:
        return name, None
    if plugin_type in engines.METRICS_PLUGINS:
        return name, None
    if plugin_type in field.IGNORED:
        warnings.append(f"{where}: {plugin_type} is ignored: {field.IGNORED[plugin_type]}")
        return name, None
    producer = wiring.producers.get(plugin_type)
    if producer is not None:
        given = section.parameters(producer)
        wiring.add_producer(name, given)
        if isinstance(given, plugins.PreciseIndexParameters) and given.indexer_config.backends:
            warnings.append(
                f"{section.where('parameters', 'indexerConfig', 'kvCacheBackendConfigs')}: "
                f"kvCacheBackendConfigs is ignored: {field.UNWEIGHTED}"
            )
        return name, None
    if plugin_type in field.REFUSED:
        raise InvalidSettings(
            f"{where}: {plugin_type} is not supported: {field.REFUSED[plugin_type]}"
        )
    found = plugins.find_plugin(plugin_type)
    if found is None:
        names = [
            *plugins.known_plugins(),
            *wiring.producers,
            *field.SILENT,
            *field.IGNORED,
            *engines.METRICS_PLUGINS,
        ]
        raise InvalidSettings(
            f"{where}: unknown plugin {plugin_type!r}{plugins.nearest(plugin_type, names)}"
        )
    kind, plugin = found
    parameters = section.parameters(plugins.parameters_of(plugin))
    wiring.add_plugin(name, plugin_type, parameters)
    return name, _Declared(plugin_type, kind, plugin, parameters, where)


def _named(section: ConfigSection, gauges: GaugeNames) -> GaugeNames:
    """`gauges`, and what this plugin calls some of them."""
    read = engines.METRICS_PLUGINS.get(section.text("type"))
    return gauges if read is None else section.parameters(read).named(gauges)


def _implied_picker() -> _Declared:
    found = plugins.find_plugin("max-score-picker")
    assert found is not None
    kind, plugin = found
    return _Declared("max-score-picker", kind, plugin, plugin.Parameters(), "no file")


def _profiles(
    top: ConfigSection, declared: Mapping[str, _Declared | None], warnings: list[str]
) -> Mapping[str, ProfileSpec]:
    """By name; without any, one of all that is declared, each scorer of weight 1."""
    if not top.data.get("schedulingProfiles"):
        return {_ONLY: _everything(declared)}
    profiles: dict[str, ProfileSpec] = {}
    for section in top.items("schedulingProfiles"):
        profile = _profile(section, declared, warnings)
        if profile.name in profiles:
            raise InvalidSettings(f"{section.at}: a second profile called {profile.name!r}")
        profiles[profile.name] = profile
    return profiles


def _everything(declared: Mapping[str, _Declared | None]) -> ProfileSpec:
    return ProfileSpec(
        name=_ONLY,
        filters=tuple(_of(plugins.PluginKind.FILTER, declared)),
        scorers=tuple((name, 1.0) for name in _of(plugins.PluginKind.SCORER, declared)),
        picker=_implied(declared),
    )


def _of(kind: plugins.PluginKind, declared: Mapping[str, _Declared | None]) -> list[str]:
    return [name for name, one in declared.items() if one is not None and one.kind is kind]


def _implied(declared: Mapping[str, _Declared | None]) -> str:
    """The picker of a profile that names none: the one that is declared, else our own."""
    return next(iter(_of(plugins.PluginKind.PICKER, declared)), IMPLIED_PICKER)


def _profile(
    section: ConfigSection, declared: Mapping[str, _Declared | None], warnings: list[str]
) -> ProfileSpec:
    section.only(("name", "plugins"))
    filters: list[str] = []
    scorers: list[tuple[str, float]] = []
    pickers: list[str] = []
    for row in section.items("plugins"):
        row.only(("pluginRef", "weight"))
        name = row.text("pluginRef")
        if name not in declared:
            raise InvalidSettings(
                f"{row.where('pluginRef')}: no plugin is called {name!r}"
                f"{plugins.nearest(name, declared)}"
            )
        weight = row.number("weight", 1.0)
        plugin = declared[name]
        if plugin is None:
            continue
        if plugin.kind is plugins.PluginKind.SCORER:
            if name in dict(scorers):
                raise InvalidSettings(
                    f"{row.where('pluginRef')}: {name} is in this profile twice; add up its weights"
                )
            scorers.append((name, weight))
            continue
        if "weight" in row.data:
            warnings.append(f"{row.where('weight')}: weight is ignored: {name} is no scorer")
        if plugin.kind is plugins.PluginKind.FILTER:
            filters.append(name)
        else:
            pickers.append(name)
        if len(pickers) > 1:
            raise InvalidSettings(
                f"{row.where('pluginRef')}: {name} is a second picker; keep {pickers[0]} or it"
            )
    return ProfileSpec(
        name=section.text("name"),
        filters=tuple(filters),
        scorers=tuple(scorers),
        picker=pickers[0] if pickers else _implied(declared),
    )
