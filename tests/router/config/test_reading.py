from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import IndexSource
from kvtier.router.choose.plugins import PreciseIndexParameters
from kvtier.router.config.indexes import IndexSpec
from kvtier.router.config.reading import (
    Configuration,
    parse_configuration,
    read_configuration,
)
from kvtier.router.learn.gauges import GaugeNames

EXAMPLES = Path(__file__).parents[3] / "examples" / "router"

HEAD = """\
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
"""
GOOD = (
    HEAD
    + """\
plugins:
- type: queue-scorer
- type: prefix-cache-scorer
  name: mine
  parameters:
    autoTune: false
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    weight: 2
  - pluginRef: mine
"""
)


def example(name: str) -> Configuration:
    return read_configuration(str(EXAMPLES / f"{name}.yaml"))


def weights(configuration: Configuration) -> dict[str, float]:
    return dict(configuration.profiles["default"].scorers)


GPU = IndexSpec(name="gpu-prefix-cache-scorer", source=IndexSource.ESTIMATED, tier="device")
CPU = IndexSpec(
    name="cpu-prefix-cache-scorer",
    source=IndexSource.ESTIMATED,
    tier="ram",
    autotune=False,
    capacity_blocks=41_000,
)


def test_tiered_prefix_cache_example_is_read() -> None:
    found = example("tiered-prefix-cache")
    assert weights(found) == {
        "queue-scorer": 2.0,
        "kv-cache-utilization-scorer": 2.0,
        "gpu-prefix-cache-scorer": 1.0,
        "cpu-prefix-cache-scorer": 1.0,
    }
    assert found.indexes == {GPU.name: GPU, CPU.name: CPU}
    assert found.warnings == ()


def test_other_examples_are_read() -> None:
    active = example("active-requests")
    assert weights(active)["active-request-scorer"] == 2.0
    assert active.indexes == {GPU.name: GPU, CPU.name: CPU}

    producers = example("producers")
    assert weights(producers)["kv-cache-utilization-scorer"] == 2.0
    assert {
        name: (spec.tier, spec.autotune, spec.capacity_blocks)
        for name, spec in producers.indexes.items()
    } == {
        "cpuPrefixProducer": ("ram", False, 41_000),
        "approx-prefix-cache-producer": ("device", True, 31_250),
    }
    assert set(weights(example("no-hit-lru")).values()) == {1.0}
    assert len(weights(example("no-hit-lru"))) == 5

    one = example("one-signal")
    assert one.plugins["mooncake-no-hit-lru-scorer"].index == "mooncake-prefix-cache-producer"
    assert one.indexes["mooncake-prefix-cache-producer"].tier is None


def test_all_examples_load() -> None:
    files = sorted(EXAMPLES.glob("*.yaml"))
    assert len(files) == 6
    for file in files:
        assert read_configuration(str(file)).profiles


def test_default_configuration_uses_expected_ttft() -> None:
    found = read_configuration(None)
    assert weights(found) == {"expected-ttft-scorer": 1.0}
    assert found.plugins[found.profiles["default"].picker].type == "max-score-picker"
    assert [spec.source for spec in found.indexes.values()] == [None]


def test_newer_api_file_loads_with_warnings_for_ignored_parts() -> None:
    found = parse_configuration(
        """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: ["flowControl"]
plugins:
- type: token-producer
  parameters: {modelName: m, vllm: {url: "http://localhost:8000"}}
- type: single-profile-handler
- type: decode-filter
- type: precise-prefix-cache-producer
  parameters:
    tokenProcessorConfig: {blockSize: 64}
    kvEventsConfig: {zmqEndpoint: "tcp://*:5557"}
    indexerConfig: {kvBlockIndexConfig: {enableMetrics: true}}
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: weighted-random-picker
  parameters: {maxNumOfEndpoints: 2}
dataLayer:
  sources: [{pluginRef: token-producer}]
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: decode-filter
  - pluginRef: token-producer
  - pluginRef: prefix-cache-scorer
    weight: 2.0
  - pluginRef: weighted-random-picker
- name: second
  plugins:
  - pluginRef: prefix-cache-scorer
""",
        "epp.yaml",
    )
    assert list(found.profiles) == ["default", "second"]
    default = found.profiles["default"]
    assert default.filters == ("decode-filter",)
    assert default.scorers == (("prefix-cache-scorer", 2.0),)
    assert default.picker == "weighted-random-picker"
    assert found.plugins["prefix-cache-scorer"].index == "precise-prefix-cache-producer"
    assert [warning.split(" is ignored")[0] for warning in found.warnings] == [
        "epp.yaml line 3: featureGates",
        "epp.yaml line 18: dataLayer",
        "epp.yaml line 5: token-producer",
    ]


SECTIONS = """\
featureGates: ["flowControl", "dataLayer=false"]
saturationDetector: {pluginRef: utilization-detector}
parser: {pluginRef: openai-parser}
requestHandler: {parsers: [{pluginRef: openai-parser}]}
data:
  sources: [{pluginRef: metrics-data-source, extractors: [{pluginRef: core-metrics-extractor}]}]
dataLayer:
  injectDefaults: true
  discovery: {pluginRef: file-discovery}
flowControl:
  maxBytes: 1Gi
  maxRequests: "1k"
  defaultRequestTTL: 60s
  defaultPriorityBand: {priority: 0, fairnessPolicyRef: global-strict-fairness-policy}
  priorityBands: [{priority: -1, orderingPolicyRef: fcfs-ordering-policy}]
  usageLimitPolicyPluginRef: static-usage-limit-policy
  saturationDetector: {pluginRef: utilization-detector}
  enableEviction: false
"""


@pytest.mark.parametrize("version", ["inference.networking.x-k8s.io", "llm-d.ai"])
def test_ignored_sections_cause_warnings_and_change_nothing(version: str) -> None:
    text = GOOD.replace("inference.networking.x-k8s.io", version)
    plain, full = parse_configuration(text, "f"), parse_configuration(text + SECTIONS, "f")
    assert full.profiles == plain.profiles
    assert full.plugins == plain.plugins
    assert full.indexes == plain.indexes
    said = [warning.partition(": ")[2].partition(" is ignored: ")[0] for warning in full.warnings]
    assert sorted(said) == sorted(
        line.partition(":")[0] for line in SECTIONS.splitlines() if line[0].isalpha()
    )


def test_metric_names_of_engines_precede_the_default_ones() -> None:
    text = replaced(
        "plugins:\n- ",
        """\
plugins:
- type: metrics-data-source
  parameters: {scheme: http, path: /prometheus/metrics}
- type: core-metrics-extractor
  parameters:
    defaultEngine: mine
    engineConfigs:
    - {name: mine, queuedRequestsSpec: "queue{kind=waiting}", kvUsageSpec: usage, loraSpec: ""}
    - {name: yours, queuedRequestsSpec: depth, customMetrics: [{attributeKey: a, metricSpec: b}]}
- """,
    )
    found = parse_configuration(text, "f").gauges
    assert found.path == "/prometheus/metrics"
    assert found.waiting == ("queue{kind=waiting}", "depth", *GaugeNames().waiting)
    assert found.running == GaugeNames().running
    assert found.usage[0] == "usage"
    assert parse_configuration(GOOD, "f").gauges == GaugeNames()
    for old, new, said in (
        ("kind=waiting", "waiting", "f line 7: parameters: 'queue{waiting}': 'waiting' is no"),
        ("scheme: http", "scheme: https", "f line 5: scheme: Invalid enum value 'https'"),
        ("path: /", "port: 3, path: /", "f line 5: port: Expected `null`"),
        ("path: /", "path: ", "f line 5: parameters: path is 'prometheus/metrics'; write /metrics"),
        ("loraSpec", "loraSpce", "unknown field `loraSpce`"),
    ):
        with pytest.raises(InvalidSettings) as caught:
            parse_configuration(text.replace(old, new), "f")
        assert said in str(caught.value)


def test_file_without_profiles_has_one_of_all_plugins() -> None:
    plugins = """\
plugins:
- type: decode-filter
- type: queue-scorer
- type: openai-parser
- type: kv-cache-utilization-scorer
  name: kv
- type: random-picker
"""
    for end in ("", "schedulingProfiles: []\n", "schedulingProfiles:\n"):
        found = parse_configuration(HEAD + plugins + end, "f")
        [(name, profile)] = found.profiles.items()
        assert name == profile.name == "default"
        assert profile.filters == ("decode-filter",)
        assert profile.scorers == (("queue-scorer", 1.0), ("kv", 1.0))
        assert profile.picker == "random-picker"


def test_profile_without_a_picker_uses_the_declared_one() -> None:
    text = replaced("plugins:\n- ", "plugins:\n- type: weighted-random-picker\n- ")
    assert parse_configuration(text, "f").profiles["default"].picker == "weighted-random-picker"
    implied = parse_configuration(GOOD, "f")
    assert implied.plugins[implied.profiles["default"].picker].type == "max-score-picker"


@pytest.mark.parametrize(
    ("written", "weight"), [("2", 2.0), ("2.0", 2.0), ("0.5", 0.5), ("0", 0.0)]
)
def test_weights_can_be_integers_or_fractions(written: str, weight: float) -> None:
    found = parse_configuration(replaced("weight: 2", f"weight: {written}"), "f")
    assert dict(found.profiles["default"].scorers)["queue-scorer"] == weight


# Helm values as published by llm-d: quoted labels, comments after values, rows in flow style.
VALUES = """\
inferencePool:
  modelServers:
    matchLabels:
      "llm-d.ai/inferenceServing": "true"
inferenceExtension:
  {flags}
  pluginsConfigFile: "custom-plugins.yaml"
  pluginsCustomConfig:
    custom-plugins.yaml: |
      apiVersion: {version}
      kind: EndpointPickerConfig
      plugins:
      - type: {load}
      - type: kv-cache-utilization-scorer
      - type: prefix-cache-scorer
        name: gpu-prefix-cache-scorer
      - type: prefix-cache-scorer
        name: cpu-prefix-cache-scorer
        parameters:
          autoTune: false  # vLLM doesn't have the CPU capacity metric to enable autoTune yet
          lruCapacityPerServer: 41000  # 41,000 blocks * 2.5MB/block (160KB/token * 16 block size).
      schedulingProfiles:
      - name: default
        plugins:
        - {{pluginRef: {load}, weight: 2}}
        - {{pluginRef: kv-cache-utilization-scorer, weight: 2}}
        - {{pluginRef: gpu-prefix-cache-scorer, weight: 1}}
        - {{pluginRef: cpu-prefix-cache-scorer, weight: 1}}
"""


@pytest.mark.parametrize("load", ["queue-scorer", "active-request-scorer"])
@pytest.mark.parametrize(
    "flags",
    [
        'flags: {kv-cache-usage-percentage-metric: "vllm:kv_cache_usage_perc"}',
        'flags: [{name: kv-cache-usage-percentage-metric, value: "vllm:kv_cache_usage_perc"}]',
        "replicas: 1",
    ],
)
def test_helm_values_in_flow_style_are_read(load: str, flags: str) -> None:
    older, newer = "inference.networking.x-k8s.io/v1alpha1", "llm-d.ai/v1alpha1"
    found = parse_configuration(VALUES.format(version=older, load=load, flags=flags), "values.yaml")
    assert list(weights(found).items()) == [
        (load, 2.0),
        ("kv-cache-utilization-scorer", 2.0),
        ("gpu-prefix-cache-scorer", 1.0),
        ("cpu-prefix-cache-scorer", 1.0),
    ]
    assert found.indexes == {GPU.name: GPU, CPU.name: CPU}
    assert found.warnings == ()
    # Under the newer version, a scorer that sizes an index still has its own.
    moved = parse_configuration(VALUES.format(version=newer, load=load, flags=flags), "values.yaml")
    assert weights(moved) == weights(found)
    assert moved.indexes[CPU.name] == CPU
    assert moved.plugins[GPU.name].tier == "device"


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ("kv-cache-scorer", "use kv-cache-utilization-scorer"),
        ("session-affinity-filter", "use session-affinity-scorer"),
        ("header-based-testing-filter", "start with --test-endpoint-selection"),
        ("predicted-latency-scorer", "kvtier has no trained predictor"),
        ("disagg-profile-handler", "kvtier does not disaggregate prefill and decode"),
    ],
)
def test_rejected_plugin_names_its_replacement(plugin: str, said: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_configuration(replaced("type: queue-scorer", f"type: {plugin}"), "f")
    assert str(caught.value).startswith(f"f line 4: {plugin} is not supported: ")
    assert said in str(caught.value)


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            replaced("type: queue-scorer", "type: quue-scorer"),
            "f line 4: unknown plugin 'quue-scorer'; did you mean 'queue-scorer'?",
        ),
        (
            replaced("autoTune", "autotune"),
            "f line 8: unknown parameter 'autotune'; did you mean 'autoTune'?",
        ),
        (
            replaced("autoTune: false", "lruCapacityPerServer: many"),
            "f line 8: lruCapacityPerServer: Expected `int`, got `str`",
        ),
        (
            replaced("autoTune: false", "matchLengthWeight: 3"),
            "f line 7: parameters: matchLengthWeight is 3.0; write 0 to 1",
        ),
        (
            replaced("pluginRef: mine", "pluginRef: mien"),
            "f line 14: there is no plugin named 'mien'; did you mean 'mine'?",
        ),
        (replaced("weight: 2", "weight: -2"), "f line 13: weight is -2; write a number"),
        (replaced("weight: 2", "wieght: 2"), "f line 13: unknown key 'wieght'; did you mean"),
        (replaced("name: mine", "name: queue-scorer"), "f line 5: a second plugin named 'queue"),
        (replaced("name: mine", "nam: mine"), "f line 6: unknown key 'nam'; did you mean 'name'?"),
        (replaced("plugins:\n- ", "plugin:\n- "), "f line 3: unknown key 'plugin'; did you mean"),
        (
            replaced("x-k8s.io/v1alpha1", "x-k8s.io/v1"),
            "f line 1: unknown version 'inference.networking.x-k8s.io/v1'",
        ),
        (
            replaced("type: queue-scorer", "type: latency-scorer"),
            "f line 4: latency-scorer is not supported: kvtier has no trained predictor",
        ),
        (HEAD, "f: plugins must be a non-empty list"),
        (replaced("kind: EndpointPickerConfig", "kind: Other"), "contains no `kind: Endpoint"),
        (GOOD + "- name: default\n  plugins: [{pluginRef: mine}]\n", "f line 15: a second profile"),
        (
            replaced("- type: queue-scorer", "- type: random-picker\n- type: round-robin-picker")
            .replace("pluginRef: queue-scorer", "pluginRef: random-picker")
            .replace("pluginRef: mine", "pluginRef: round-robin-picker"),
            "f line 15: round-robin-picker is a second picker; "
            "keep only one of random-picker and round-robin-picker",
        ),
    ],
)
def test_errors_name_file_line_and_the_closest_name(text: str, message: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_configuration(text, "f")
    assert message in str(caught.value)


def test_errors_in_helm_values_name_the_line_of_the_file(tmp_path: Path) -> None:
    text = (EXAMPLES / "tiered-prefix-cache.yaml").read_text()
    file = tmp_path / "values.yaml"
    file.write_text(text.replace("lruCapacityPerServer", "lruCapacity"))
    line = next(
        number for number, line in enumerate(text.splitlines(), 1) if "lruCapacityPerS" in line
    )
    with pytest.raises(InvalidSettings, match=f"values.yaml line {line}: unknown parameter"):
        read_configuration(str(file))


LINES = (EXAMPLES / "no-hit-lru.yaml").read_text().splitlines() + GOOD.splitlines()
WORDS = sorted({word.strip("-:{}, ") for line in LINES for word in line.split()} | {"3", "[", "~"})


@settings(max_examples=300)
@given(data=st.data())
def test_mutated_file_loads_or_is_rejected_with_its_name(data: st.DataObject) -> None:
    lines = GOOD.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["word", "swap", "drop", "indent", "text"])):
            case "word":
                key = lines[place].split(":")[0]
                lines[place] = f"{key}: {data.draw(st.sampled_from(WORDS))}"
            case "swap":
                lines[place] = data.draw(st.sampled_from(LINES))
            case "drop":
                lines[place] = ""
            case "indent":
                lines[place] = "  " + lines[place]
            case "text":
                lines[place] += data.draw(st.text(max_size=5))
    said = "f"
    try:
        assert parse_configuration("\n".join(lines), "f").profiles
    except InvalidSettings as error:
        said = str(error)
    assert said.startswith("f")


NEWER = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
"""
INDEXER = """\
  parameters:
    indexerConfig:
      prefixStoreConfig: {cacheSize: 500000, blockSize: 256}
      tokenProcessorConfig: {blockSize: 16}
      kvBlockIndexConfig: {inMemoryConfig: {size: 100000000, podCacheSize: 10}}
      tokenizersPoolConfig: {modelName: m, local: null, hf: null}
      kvCacheBackendConfigs: [{name: gpu, weight: 1.0}, {name: cpu, weight: 0.5}]
    speculativeIndexing: true
    speculativeTTL: 2s
"""
NAMED = "  parameters:\n    prefixMatchInfoProducerName: precise-prefix-cache-producer"
PRODUCER = NEWER + "- type: precise-prefix-cache-producer\n" + INDEXER
PRECISE = NEWER + "- type: precise-prefix-cache-scorer\n" + INDEXER


def test_tier_weights_of_a_precise_scorer_are_read() -> None:
    found = parse_configuration(PRECISE, "f")
    given = found.plugins["precise-prefix-cache-scorer"].parameters
    assert isinstance(given, PreciseIndexParameters)
    assert {one.name: one.weight for one in given.indexer_config.backends} == {
        "gpu": 1.0,
        "cpu": 0.5,
    }
    assert found.warnings == ()


def test_tier_weights_of_a_producer_cause_a_warning() -> None:
    end = (
        "- type: prefix-cache-scorer\n"
        "  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}\n"
    )
    [warning] = parse_configuration(PRODUCER + end, "f").warnings
    assert warning.startswith("f line 11: kvCacheBackendConfigs is ignored: ")
    assert "set the weights on a precise-prefix-cache-scorer" in warning
    # The replacement that the warning suggests is accepted.
    moved = (
        PRECISE.replace("  parameters:\n", f"{NAMED}\n", 1)
        + "- type: precise-prefix-cache-producer\n"
    )
    found = parse_configuration(moved, "f")
    assert found.plugins["precise-prefix-cache-scorer"].index == "precise-prefix-cache-producer"
    assert found.warnings == ()
    without = PRODUCER.replace("kvCacheBackendConfigs: [{name: gpu", "# [{name: gpu")
    assert parse_configuration(without + end, "f").warnings == ()


@pytest.mark.parametrize("text", [PRODUCER, PRECISE])
def test_unknown_indexer_key_is_rejected(text: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_configuration(text.replace("BackendConfigs", "BackendConfig"), "f")
    assert str(caught.value) == (
        "f line 11: indexerConfig: Object contains unknown field `kvCacheBackendConfig`; "
        "did you mean 'kvCacheBackendConfigs'?"
    )


PROFILE = """\
- type: decode-filter
- type: queue-scorer
- type: random-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: decode-filter
  - {pluginRef: queue-scorer, weight: 2}
  - pluginRef: random-picker
"""


def test_weight_of_a_filter_or_picker_causes_a_warning() -> None:
    assert parse_configuration(NEWER + PROFILE, "f").warnings == ()
    for name, line in (("decode-filter", 10), ("random-picker", 12)):
        text = PROFILE.replace(f"pluginRef: {name}", f"{{pluginRef: {name}, weight: 3}}")
        assert parse_configuration(NEWER + text, "f").warnings == (
            f"f line {line}: weight is ignored: {name} is not a scorer",
        )


def test_repeated_scorer_in_a_profile_is_rejected() -> None:
    with pytest.raises(InvalidSettings, match="f line 13: queue-scorer is in this profile twice"):
        parse_configuration(NEWER + PROFILE + "  - {pluginRef: queue-scorer, weight: 3}\n", "f")


@pytest.mark.parametrize(
    ("plugin", "parameters", "message"),
    [
        ("lora-affinity-scorer", "maxAdapters: -1", "parameters: maxAdapters is -1"),
        (
            "session-affinity-scorer",
            "sessionIdConfig: {evictionTtlSeconds: -5}",
            "sessionIdConfig: evictionTtlSeconds is -5",
        ),
        ("utilization-detector", "headroom: .nan", "parameters: headroom must be 0 or more"),
        ("prefix-cache-picker", "deviations: .nan", "parameters: deviations is nan"),
        ("prefix-cache-picker", "imbalance: -1", "parameters: imbalance is -1"),
        (
            "prefix-cache-affinity-filter",
            "affinityThreshold: -1",
            "parameters: affinityThreshold must be 0 to 1",
        ),
        (
            "prefix-cache-scorer",
            "lruCapacityPerServer: 0",
            "parameters: lruCapacityPerServer is 0",
        ),
        (
            "label-selector-filter",
            "matchExpressions: [{key: a, operator: In}]",
            "matchExpressions.0: values of a: In takes values",
        ),
        (
            "precise-prefix-cache-producer",
            "speculativeTTL: banana",
            "parameters: speculativeTTL is 'banana'",
        ),
    ],
)
def test_invalid_values_name_line_and_field(plugin: str, parameters: str, message: str) -> None:
    text = f"{NEWER}- type: queue-scorer\n- type: {plugin}\n  parameters:\n    {parameters}\n"
    with pytest.raises(InvalidSettings) as caught:
        parse_configuration(text, "f")
    where, _, said = str(caught.value).partition(": ")
    assert where in ("f line 6", "f line 7")
    assert said.startswith(message)
