import click
import pytest
from click.testing import CliRunner

from kvtier.cli.gauges import gauge_flags, gauges
from kvtier.errors import InvalidSettings
from kvtier.router.learn.gauges import GaugeNames


def given(*arguments: str, usual: GaugeNames | None = None) -> GaugeNames:
    seen: list[GaugeNames] = []

    @click.command()
    @gauge_flags
    def command(**flags: object) -> None:
        seen.append(gauges(flags, usual or GaugeNames()))

    CliRunner().invoke(command, arguments, catch_exceptions=False)
    return seen[0]


def test_gauges_default_to_engines_names() -> None:
    assert given() == GaugeNames()


def test_gauges_default_to_configured_names() -> None:
    usual = GaugeNames(waiting=("mine",), path="/prometheus/metrics")
    assert given(usual=usual) == usual
    assert given("--total-queued-requests-metric", "x", usual=usual).waiting == ("x", "mine")


def test_gauges_put_given_names_first() -> None:
    found = given(
        "--total-queued-requests-metric",
        "nv_trt_llm_request_metrics{request_type=waiting}",
        "--total-running-requests-metric",
        "mine",
        "--kv-cache-usage-percentage-metric",
        "vllm:gpu_cache_usage_perc",
        "--model-server-metrics-path",
        "/prometheus/metrics",
    )
    assert found.waiting[0] == "nv_trt_llm_request_metrics{request_type=waiting}"
    assert found.running == ("mine", *GaugeNames().running)
    assert found.usage[0] == "vllm:gpu_cache_usage_perc"
    assert found.path == "/prometheus/metrics"


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--total-queued-requests-metric", "a b"),
        ("--total-running-requests-metric", "a{b}"),
        ("--kv-cache-usage-percentage-metric", "a{"),
        ("--model-server-metrics-path", "metrics"),
    ],
)
def test_gauges_report_invalid_name_with_flag(flag: str, text: str) -> None:
    with pytest.raises(InvalidSettings, match=f"{flag}: "):
        given(flag, text)
