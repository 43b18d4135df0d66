import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.config.reading import Configuration, parse_configuration

OLD = "inference.networking.x-k8s.io/v1alpha1"
NEW = "llm-d.ai/v1alpha1"


def configured(version: str, plugins: str) -> Configuration:
    names = [
        line.split("name: ")[1].split(",")[0].rstrip("}")
        for line in plugins.splitlines()
        if "-scorer" in line
    ]
    refs = ", ".join(f"{{pluginRef: {name}}}" for name in names)
    return parse_configuration(
        f"apiVersion: {version}\nkind: EndpointPickerConfig\nplugins:\n{plugins}\n"
        f"schedulingProfiles:\n- {{name: default, plugins: [{refs}]}}\n",
        "f",
    )


def looks(configuration: Configuration) -> dict[str, tuple[str | None, str | None]]:
    return {
        name: (one.index, one.tier)
        for name, one in configuration.plugins.items()
        if not name.startswith("(")
    }


def test_older_api_gives_each_prefix_scorer_its_own_index() -> None:
    found = configured(
        OLD,
        "- {type: prefix-cache-scorer, name: gpu-x}\n"
        "- {type: prefix-cache-scorer, name: plain}\n"
        "- {type: prefix-cache-scorer, name: gpu-y, parameters: {tier: disk}}",
    )
    assert looks(found) == {
        "gpu-x": ("gpu-x", "device"),
        "plain": ("plain", None),
        "gpu-y": ("gpu-y", "disk"),
    }
    assert {name: spec.tier for name, spec in found.indexes.items()} == {
        "gpu-x": "device",
        "plain": None,
        "gpu-y": "disk",
    }


def test_newer_api_reads_producers_and_has_an_implicit_one() -> None:
    found = configured(
        NEW,
        "- {type: prefix-cache-scorer, name: gpu-scorer}\n"
        "- {type: prefix-cache-scorer, name: second, parameters: "
        "{prefixMatchInfoProducerName: cpuProducer}}\n"
        "- {type: approx-prefix-cache-producer, name: cpuProducer}",
    )
    assert looks(found) == {
        "gpu-scorer": ("approx-prefix-cache-producer", "device"),
        "second": ("cpuProducer", "ram"),
    }
    assert {name: spec.tier for name, spec in found.indexes.items()} == {
        "cpuProducer": "ram",
        "approx-prefix-cache-producer": "device",
    }


def test_index_read_for_several_tiers_estimates_all_tiers() -> None:
    found = configured(
        NEW,
        "- {type: prefix-cache-scorer, name: gpu-scorer}\n"
        "- {type: prefix-cache-scorer, name: cpu-scorer}",
    )
    assert looks(found) == {
        "gpu-scorer": ("approx-prefix-cache-producer", "device"),
        "cpu-scorer": ("approx-prefix-cache-producer", "ram"),
    }
    assert found.indexes["approx-prefix-cache-producer"].tier is None


def test_newer_api_scorer_that_sizes_an_index_has_its_own() -> None:
    found = configured(
        NEW, "- {type: prefix-cache-scorer, name: a-scorer, parameters: {lruCapacityPerServer: 5}}"
    )
    assert found.indexes["a-scorer"].capacity_blocks == 5


def test_prefix_plugin_name_resolves_to_the_index_of_a_scorer() -> None:
    found = configured(
        NEW,
        "- {type: no-hit-lru-scorer, name: lru-scorer, parameters: {prefixPluginName: p-scorer}}\n"
        "- {type: prefix-cache-scorer, name: p-scorer, parameters: "
        "{prefixMatchInfoProducerName: it}}\n"
        "- {type: approx-prefix-cache-producer, name: it}",
    )
    assert looks(found)["lru-scorer"] == ("it", None)


def test_precise_scorer_has_a_precise_index_with_every_tier() -> None:
    found = configured(NEW, "- {type: precise-prefix-cache-scorer, name: p-scorer}")
    assert looks(found) == {"p-scorer": ("p-scorer", None)}
    spec = found.indexes["p-scorer"]
    assert (spec.source and spec.source.value, spec.tier) == ("precise", None)


def test_plugin_without_a_producer_reads_all_indexes() -> None:
    alone = configured(NEW, "- {type: expected-ttft-scorer, name: t-scorer}")
    assert looks(alone) == {"t-scorer": (None, None)}
    assert [(spec.name, spec.source, spec.tier) for spec in alone.indexes.values()] == [
        ("prefix", None, None)
    ]
    assert configured(NEW, "- {type: queue-scorer, name: q-scorer}").indexes == {}


def test_unknown_producer_is_rejected_with_a_suggestion() -> None:
    with pytest.raises(InvalidSettings, match=r"f line 4: a-scorer .*; did you mean 'cpuProducer'"):
        configured(
            NEW,
            "- {type: prefix-cache-scorer, name: a-scorer, parameters: "
            "{prefixMatchInfoProducerName: cpuProduce}}\n"
            "- {type: approx-prefix-cache-producer, name: cpuProducer}",
        )


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (
            "b-scorer",
            "f line 4: a-scorer -> b-scorer -> a-scorer: none of these plugins",
        ),
        ("a-scorer", "f line 4: a-scorer -> a-scorer: none of these plugins"),
    ],
)
def test_cycle_of_plugin_names_is_rejected(second: str, said: str) -> None:
    row = "- {type: no-hit-lru-scorer, name: %s, parameters: {prefixPluginName: %s}}"
    with pytest.raises(InvalidSettings) as caught:
        configured(NEW, f"{row % ('a-scorer', second)}\n{row % ('b-scorer', 'a-scorer')}")
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("name a producer")
