"""Reading an EndpointPickerConfig of either API generation, alone or inside Helm values.

Configurations written for llm-d or the Gateway API Inference Extension can be used unchanged.
Invariants: an unknown plugin or parameter is an error that names file, line and the closest known
name; a section or plugin without effect causes a warning. The result is validated data, from which
`profiles.build_profiles` instantiates the plugins.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.router.choose import plugins
from kvtier.router.config import compatibility
from kvtier.router.config.gauges import METRICS_PLUGINS
from kvtier.router.config.indexes import IndexSpec, IndexWiring
from kvtier.router.config.sections import KIND, ConfigSection, extract
from kvtier.router.learn.gauges import GaugeNames
from kvtier.settings.document import Document, parse_document, read_document

VERSIONS: Final = ("inference.networking.x-k8s.io/v1alpha1", "llm-d.ai/v1alpha1")
"""The supported API versions: the older and the newer generation."""

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
"""The configuration that is used if no file is given."""

_EXAMPLE: Final = f"kind: {KIND}"

IMPLIED_PICKER: Final = "(max-score-picker)"
"""The name of the implied picker; the parentheses keep it distinct from declared plugins."""

_ONLY: Final = "default"
"""The name of the implied profile of a file that declares none."""

_TOP: Final = ("apiVersion", "kind", "plugins", "schedulingProfiles", *compatibility.SECTIONS)


class PluginSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A declared scorer, filter or picker that has not been instantiated."""

    type: str
    name: str
    kind: plugins.PluginKind
    plugin: Any
    """The class."""
    parameters: plugins.PluginParameters
    index: str | None
    """The index that the plugin reads; None for all of them or none."""
    tier: str | None
    where: str
    """The file and line of the declaration."""


class ProfileSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A profile as a list of plugin names, in the order of the file."""

    name: str
    filters: tuple[str, ...]
    scorers: tuple[tuple[str, float], ...]
    """Names and weights."""
    picker: str


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """The content of an EndpointPickerConfig."""

    path: str
    plugins: Mapping[str, PluginSpec]
    profiles: Mapping[str, ProfileSpec]
    """The first is the default."""
    indexes: Mapping[str, IndexSpec]
    warnings: tuple[str, ...]
    """Messages about plugins and sections without effect, with file and line."""
    gauges: GaugeNames = GaugeNames()
    """Names of the replicas' metrics."""


def read_configuration(path: str | None, flag: str = "--profile") -> Configuration:
    """Read the configuration in the file `path`, given by `flag`; None for the default one.

    Raises InvalidSettings.
    """
    if path is None:
        return parse_configuration(DEFAULT, "the default profile")
    return _configuration(extract(read_document(path, flag, _EXAMPLE)))


def parse_configuration(text: str, path: str) -> Configuration:
    """Read a configuration from a string; errors name it `path`. Raises InvalidSettings."""
    return _configuration(extract(parse_document(text, path, example=_EXAMPLE)))


def _configuration(document: Document) -> Configuration:
    top = ConfigSection(document, (), document.data)
    top.only(_TOP)
    version = top.text("apiVersion")
    if version not in VERSIONS:
        raise InvalidSettings(
            f"{top.where('apiVersion')}: unknown version {version!r} of EndpointPickerConfig"
            f"{plugins.nearest(version, VERSIONS)}"
        )
    warnings = [
        f"{top.where(name)}: {name} is ignored: {why}"
        for name, why in compatibility.SECTIONS.items()
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
                f"{section.at}: a second plugin named {name!r}; give it a unique name"
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
    """A plugin whose index is still unresolved, as it may be declared later in the file."""

    type: str
    kind: plugins.PluginKind
    plugin: Any
    parameters: plugins.PluginParameters
    where: str

    def resolved(self, name: str, wiring: IndexWiring) -> PluginSpec:
        """Return the plugin's spec, with the index and tier that it reads."""
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
    """Read one entry of `plugins`: its name, and None if it does not take part in choosing."""
    section.only(("type", "name", "parameters"))
    plugin_type = section.text("type")
    name = section.text("name", plugin_type)
    where = section.where("type")
    if plugin_type in compatibility.SILENT:
        return name, None
    if plugin_type in METRICS_PLUGINS:
        return name, None
    if plugin_type in compatibility.IGNORED:
        warnings.append(f"{where}: {plugin_type} is ignored: {compatibility.IGNORED[plugin_type]}")
        return name, None
    producer = wiring.producers.get(plugin_type)
    if producer is not None:
        given = section.parameters(producer)
        wiring.add_producer(name, given)
        if isinstance(given, plugins.PreciseIndexParameters) and given.indexer_config.backends:
            warnings.append(
                f"{section.where('parameters', 'indexerConfig', 'kvCacheBackendConfigs')}: "
                f"kvCacheBackendConfigs is ignored: {compatibility.UNWEIGHTED}"
            )
        return name, None
    if plugin_type in compatibility.REFUSED:
        raise InvalidSettings(
            f"{where}: {plugin_type} is not supported: {compatibility.REFUSED[plugin_type]}"
        )
    found = plugins.find_plugin(plugin_type)
    if found is None:
        names = [
            *plugins.known_plugins(),
            *wiring.producers,
            *compatibility.SILENT,
            *compatibility.IGNORED,
            *METRICS_PLUGINS,
        ]
        raise InvalidSettings(
            f"{where}: unknown plugin {plugin_type!r}{plugins.nearest(plugin_type, names)}"
        )
    kind, plugin = found
    parameters = section.parameters(plugins.parameters_of(plugin))
    wiring.add_plugin(name, plugin_type, parameters)
    return name, _Declared(plugin_type, kind, plugin, parameters, where)


def _named(section: ConfigSection, gauges: GaugeNames) -> GaugeNames:
    """Return `gauges` with the names that this plugin gives to some of them."""
    read = METRICS_PLUGINS.get(section.text("type"))
    return gauges if read is None else section.parameters(read).extend(gauges)


def _implied_picker() -> _Declared:
    found = plugins.find_plugin("max-score-picker")
    assert found is not None
    kind, plugin = found
    return _Declared("max-score-picker", kind, plugin, plugin.Parameters(), "the implied picker")


def _profiles(
    top: ConfigSection, declared: Mapping[str, _Declared | None], warnings: list[str]
) -> Mapping[str, ProfileSpec]:
    """Read the profiles by name; a file without any has one of all plugins, with weights of 1."""
    if not top.data.get("schedulingProfiles"):
        return {_ONLY: _everything(declared)}
    profiles: dict[str, ProfileSpec] = {}
    for section in top.items("schedulingProfiles"):
        profile = _profile(section, declared, warnings)
        if profile.name in profiles:
            raise InvalidSettings(f"{section.at}: a second profile named {profile.name!r}")
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
    """Return the picker of a profile that names none: the first declared one or the implied one."""
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
                f"{row.where('pluginRef')}: there is no plugin named {name!r}"
                f"{plugins.nearest(name, declared)}"
            )
        weight = row.number("weight", 1.0)
        plugin = declared[name]
        if plugin is None:
            continue
        if plugin.kind is plugins.PluginKind.SCORER:
            if name in dict(scorers):
                raise InvalidSettings(
                    f"{row.where('pluginRef')}: {name} is in this profile twice; add up the weights"
                )
            scorers.append((name, weight))
            continue
        if "weight" in row.data:
            warnings.append(f"{row.where('weight')}: weight is ignored: {name} is not a scorer")
        if plugin.kind is plugins.PluginKind.FILTER:
            filters.append(name)
        else:
            pickers.append(name)
        if len(pickers) > 1:
            raise InvalidSettings(
                f"{row.where('pluginRef')}: {name} is a second picker; "
                f"keep only one of {pickers[0]} and {name}"
            )
    return ProfileSpec(
        name=section.text("name"),
        filters=tuple(filters),
        scorers=tuple(scorers),
        picker=pickers[0] if pickers else _implied(declared),
    )
