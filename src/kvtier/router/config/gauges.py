"""Metric names in a configuration: `core-metrics-extractor` and `metrics-data-source`.

Newer versions of llm-d's endpoint picker configure the engines' metric names in the file instead
of by flags. Invariant: the names given for waiting requests, running requests and KV cache usage
are tried before the default ones, whatever a pod's label says about its engine; all other metrics
are read under their default names.
"""

from typing import Any, Final, Literal

import msgspec

from kvtier.router.choose.plugins import PluginParameters
from kvtier.router.learn.gauges import GaugeNames, prepend

EXTRACTOR: Final = "core-metrics-extractor"
SOURCE: Final = "metrics-data-source"


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An entry of `engineConfigs`: the metric names of one engine."""

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
    """The parameters of `core-metrics-extractor`.

    Engine labels are ignored: the first name that a replica exposes is used.
    """

    engine_label_key: str = ""
    default_engine: str = ""
    engine_configs: tuple[EngineConfig, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for an invalid metric name."""
        self.extend(GaugeNames())

    def extend(self, base: GaugeNames) -> GaugeNames:
        """Return `base` with the configured names in front. Raises ValueError for invalid ones."""
        waiting, running, usage = base.waiting, base.running, base.usage
        for engine in reversed(self.engine_configs):
            waiting = prepend(engine.waiting or None, waiting)
            running = prepend(engine.running or None, running)
            usage = prepend(engine.usage or None, usage)
        return GaugeNames(waiting=waiting, running=running, usage=usage, path=base.path)


class MetricsDataSource(PluginParameters, frozen=True, kw_only=True):
    """The parameters of `metrics-data-source`, of which only the path has an effect.

    Certificates and the scrape interval follow kvtier's own settings.
    """

    scheme: Literal["http"] = "http"
    path: str = "/metrics"
    port: None = None
    insecure_skip_verify: bool = False
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    interval: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError unless the path is absolute."""
        if not self.path.startswith("/"):
            raise ValueError(f"path is {self.path!r}; write /metrics")

    def extend(self, base: GaugeNames) -> GaugeNames:
        """Return `base` with the configured path."""
        return msgspec.structs.replace(base, path=self.path)


METRICS_PLUGINS: Final[dict[str, type[CoreMetricsExtractor] | type[MetricsDataSource]]] = {
    EXTRACTOR: CoreMetricsExtractor,
    SOURCE: MetricsDataSource,
}
"""Plugins that configure metrics rather than choosing, with their parameters."""
