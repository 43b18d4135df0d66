import subprocess
import sys
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.choose import plugins
from kvtier.router.scorers.queue import PLUGIN


def test_find_plugin_returns_kind_and_class() -> None:
    assert plugins.find_plugin("queue-scorer") == (plugins.PluginKind.SCORER, PLUGIN)
    kind, plugin = plugins.find_plugin("utilization-detector") or (None, None)
    assert kind is plugins.PluginKind.FILTER
    assert plugin.__name__ == "UtilizationDetector"


@pytest.mark.parametrize(
    "name", ["quue-scorer", "queue", "queue-picker", "utilization-filter", "-scorer", "../x-scorer"]
)
def test_find_plugin_returns_none_for_an_unknown_name(name: str) -> None:
    assert plugins.find_plugin(name) is None


def test_known_plugins_include_those_of_llm_d() -> None:
    assert {
        "queue-scorer",
        "kv-cache-utilization-scorer",
        "prefix-cache-scorer",
        "no-hit-lru-scorer",
        "running-requests-size-scorer",
        "load-aware-scorer",
        "active-request-scorer",
        "session-affinity-scorer",
        "token-load-scorer",
        "expected-ttft-scorer",
        "precise-prefix-cache-scorer",
        "lora-affinity-scorer",
        "lora-affinity-filter",
        "prefix-cache-affinity-filter",
        "utilization-detector",
        "max-score-picker",
        "weighted-random-picker",
        "round-robin-picker",
        "least-request-picker",
        "power-of-two-picker",
        "random-picker",
    } <= set(plugins.known_plugins())


def test_all_plugins_have_parameters_with_defaults() -> None:
    for name in plugins.known_plugins():
        _, plugin = plugins.find_plugin(name) or (None, None)
        assert isinstance(plugins.parameters_of(plugin)(), plugins.PluginParameters), name


def test_nearest_suggests_one_name_or_lists_all() -> None:
    assert plugins.nearest("quue", ["queue", "disk"]) == "; did you mean 'queue'?"
    assert plugins.nearest("zzz", ["queue", "disk"]) == "; known are disk, queue"
    assert plugins.nearest("zzz", []) == "; it has none"


def test_parameters_of_another_type_are_rejected() -> None:
    class Wrong:
        Parameters = dict

    with pytest.raises(InvalidSettings, match="Parameters"):
        plugins.parameters_of(Wrong)


OUTSIDER = """
from kvtier.router.choose import plugins
from kvtier.router.config.reading import parse_configuration
print(plugins.find_plugin("cheapest-scorer")[1].__name__)
print("cheapest-scorer" in plugins.known_plugins())
text = '''
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: cheapest-scorer
  parameters: {currency: EUR}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: cheapest-scorer}]
'''
print(parse_configuration(text, "f").plugins["cheapest-scorer"].parameters.currency)
"""


def test_entry_point_adds_a_scorer(tmp_path: Path) -> None:
    (tmp_path / "outsider.py").write_text(
        "from kvtier.router.choose import plugins\n"
        "class Cheapest:\n"
        "    class Parameters(plugins.PluginParameters, frozen=True):\n"
        "        currency: str = 'USD'\n"
    )
    metadata = tmp_path / "outsider-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[kvtier.router.scorers]\ncheapest = outsider:Cheapest\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", OUTSIDER],
        env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines() == ["Cheapest", "True", "EUR"]


def test_estimated_index_without_capacity_is_rejected() -> None:
    with pytest.raises(ValueError, match="lruCapacityPerServer is 0; write 1 or more"):
        plugins.EstimatedIndexParameters(lru_capacity_per_server=0)


@pytest.mark.parametrize("text", ["2s", "500ms", "1m30s", "1.5h", "0", ""])
def test_speculative_ttl_accepts_go_durations(text: str) -> None:
    assert plugins.PreciseIndexParameters(speculative_ttl=text).speculative_ttl == text


@pytest.mark.parametrize("text", ["banana", "2", "s", "2 s", "-2s", "2s "])
def test_speculative_ttl_rejects_other_texts(text: str) -> None:
    with pytest.raises(ValueError, match=f"speculativeTTL is {text!r}; write 2s or 500ms"):
        plugins.PreciseIndexParameters(speculative_ttl=text)
