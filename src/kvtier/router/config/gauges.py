"""GaugeNames of gauges from a configuration: `core-metrics-extractor` and `metrics-data-source`.

Why it exists: pickers of llm-d take no flags for them any more but a list of engines in the file.
Invariant: what is said about waiting, running and the KV cache is looked for before the usual
names, whatever a pod's label says of its engine; what else is said is read by the usual names.
"""

from typing import Any, Final, Literal

import msgspec

from kvtier.router.choose.plugins import PluginParameters
from kvtier.router.learn.gauges import GaugeNames, prepend

EXTRACTOR: Final = "core-metrics-extractor"
SOURCE: Final = "metrics-data-source"


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of `engineConfigs`, in the words of the field."""

    name: str
    waiting: str = msgspec.field(default="", name="queuedRequestsSpec")
    running: str = msgspec.field(default="", name="runningRequestsSpec")
    usage: str = msgspec.field(default="", name="kvUsageSpec")
    adapters: str = msgspec.field(default="", name="loraSpec")
    cache: str = msgspec.field(default="", name="cacheInfoSpec")
    cache_block_size_label: str = msgspec.field(default="", name="cacheBlockSizeLabelName")
    cache_blocks_label: str = msgspec.field(default="", name="cacheNumBlocksLabelName")
    cache_block_size: str = msgspec.field(default="", name="cacheBlockSizeSpec")
    cache_blocks: str = msgspec.field(default="", name="cacheNumBlocksSpec")
    custom: list[Any] = msgspec.field(default_factory=list, name="customMetrics")


class CoreMetricsExtractor(PluginParameters, frozen=True, kw_only=True):
    """Of `core-metrics-extractor`. Labels are not looked at: a replica has the names it has."""

    engine_label_key: str = ""
    default_engine: str = ""
    engine_configs: tuple[EngineConfig, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no metric."""
        self.named(GaugeNames())

    def named(self, usual: GaugeNames) -> GaugeNames:
        """`usual` with these names before them; raises ValueError."""
        waiting, running, usage = usual.waiting, usual.running, usual.usage
        for engine in reversed(self.engine_configs):
            waiting = prepend(engine.waiting or None, waiting)
            running = prepend(engine.running or None, running)
            usage = prepend(engine.usage or None, usage)
        return GaugeNames(waiting=waiting, running=running, usage=usage, path=usual.path)


class MetricsDataSource(PluginParameters, frozen=True, kw_only=True):
    """Of `metrics-data-source`: where metrics are. Certificates and the pace are kvtier's own."""

    scheme: Literal["http"] = "http"
    path: str = "/metrics"
    port: None = None
    insecure_skip_verify: bool = False
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    interval: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no path."""
        if not self.path.startswith("/"):
            raise ValueError(f"path is {self.path!r}; write /metrics")

    def named(self, usual: GaugeNames) -> GaugeNames:
        """`usual`, there."""
        return msgspec.structs.replace(usual, path=self.path)


METRICS_PLUGINS: Final[dict[str, type[CoreMetricsExtractor] | type[MetricsDataSource]]] = {
    EXTRACTOR: CoreMetricsExtractor,
    SOURCE: MetricsDataSource,
}
"""Plugins whose parameters are read, though they are no part of choosing."""
