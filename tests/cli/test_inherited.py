from collections.abc import Sequence

import click
import pytest
from click.testing import CliRunner

from kvtier.cli import inherited
from kvtier.cli.inherited import Inheriting, warnings
from kvtier.cli.main import EXIT_WRONG_SETTING, LazyCommands
from kvtier.errors import InvalidSettings

# The command lines of the charts: inferencepool v0.5.1, v1.0.1 and v1.5, llm-d-router 0.9.
V0_5 = """-poolName p -poolNamespace prod --v 3 --grpcPort 9002 -grpcHealthPort 9003
-metricsPort 9090 -configFile config/plugins.yaml --enablePprof=true
--modelServerMetricsPath=/metrics
--modelServerMetricsScheme=http --modelServerMetricsHttpsInsecureSkipVerify=true
-totalQueuedRequestsMetric w{a=b} -kvCacheUsagePercentageMetric u -loraInfoMetric"""
V1_0 = """--pool-name p --pool-namespace prod --pool-group inference.networking.x-k8s.io
--zap-encoder json --config-file /config/plugins.yaml --ha-enable-leader-election --v 4"""
V1_5 = """--pool-name p --pool-namespace prod --pool-group inference.networking.k8s.io
--total-queued-requests-metric="w" --cache-info-metric="sglang:cache_config_info"
--zap-encoder json --config-file /config/plugins.yaml --tracing=false
--metrics-endpoint-auth=false"""
STANDALONE = """--endpoint-selector app=vllm,tier=a --endpoint-target-ports 8000,8001
--grpc-health-port 9003 --secure-serving=false --tracing=true"""
OWN = (
    "pool-name",
    "pool-namespace",
    "pool-group",
    "config-file",
    "config-text",
    "grpc-port",
    "grpc-health-port",
    "metrics-port",
    "model-server-metrics-path",
    "total-queued-requests-metric",
    "kv-cache-usage-percentage-metric",
    "selector",
    "target-port",
    "tls-certificate",
    "tls-key",
    "drain",
)


def read(*arguments: str) -> tuple[dict[str, object], Sequence[str], Sequence[str]]:
    """Return the flags a command receives, its warnings, and its subcommand's arguments."""
    seen: list[tuple[dict[str, object], Sequence[str]]] = []
    below: list[str] = []

    @click.group(cls=Inheriting, invoke_without_command=True)
    @click.option("--insecure", is_flag=True)
    @click.pass_context
    def command(context: click.Context, /, **flags: object) -> None:
        given = {name: value for name, value in flags.items() if value not in (None, False)}
        seen.append((given, warnings(context)))

    for name in OWN:
        command = click.option(f"--{name}")(command)

    @command.command(context_settings={"ignore_unknown_options": True})
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    def sub(words: tuple[str, ...]) -> None:
        below.extend(words)

    result = CliRunner().invoke(command, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert seen, result.output
    return (*seen[0], below)


def test_flags_of_picker_0_5_are_translated() -> None:
    flags, warned, _ = read(*V0_5.split(), "")
    assert flags == {
        "pool_name": "p",
        "pool_namespace": "prod",
        "grpc_port": "9002",
        "grpc_health_port": "9003",
        "metrics_port": "9090",
        "config_file": "config/plugins.yaml",
        "model_server_metrics_path": "/metrics",
        "total_queued_requests_metric": "w{a=b}",
        "kv_cache_usage_percentage_metric": "u",
    }
    assert [text.partition(" is ignored: ")[0] for text in warned] == [
        "--v",
        "--enable-pprof",
        "--model-server-metrics-https-insecure-skip-verify",
    ]


def test_flags_of_picker_1_0_are_translated() -> None:
    flags, warned, _ = read(*V1_0.split())
    assert flags == {
        "pool_name": "p",
        "pool_namespace": "prod",
        "pool_group": "inference.networking.x-k8s.io",
        "config_file": "/config/plugins.yaml",
    }
    assert [text.partition(" is ignored: ")[0] for text in warned] == [
        "--zap-encoder",
        "--ha-enable-leader-election",
        "--v",
    ]
    assert "run one of them" in warned[1]


def test_flags_of_picker_1_5_and_standalone_are_translated() -> None:
    flags, warned, _ = read(*V1_5.split())
    assert flags["total_queued_requests_metric"] == '"w"'
    assert [text.partition(" is ignored: ")[0] for text in warned] == [
        "--cache-info-metric",
        "--zap-encoder",
    ]
    flags, warned, _ = read(*STANDALONE.split())
    assert flags == {
        "selector": "app=vllm,tier=a",
        "target_port": "8000,8001",
        "grpc_health_port": "9003",
        "insecure": True,
    }
    assert len(warned) == 1


def test_renamed_flags_are_translated() -> None:
    flags, warned, _ = read("--cert-path", "/certs", "--secure-serving", "--drain-timeout=30s")
    assert flags == {
        "tls_certificate": "/certs/tls.crt",
        "tls_key": "/certs/tls.key",
        "drain": "30s",
    }
    assert read("--cert-path=", "--secure-serving", "true") == ({}, [], [])
    assert warned == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--emit-endpoint-scores=false",),
        ("--tracing", "false"),
        ("--ha-enable-leader-election=0",),
        ("--health-checking",),
        ("--lora-info-metric", ""),
        ("--lora-info-metric=vllm:lora_requests_info",),
        ("--destination-endpoint-hint-key", "x-gateway-destination-endpoint"),
        ("-destinationEndpointHintMetadataNamespace", "envoy.lb"),
        ("--disable-endpoint-subset-filter=false",),
        ("--model-server-metrics-port=-1",),
        ("--tls-min-version", "VersionTLS12"),
    ],
)
def test_ignored_flag_with_matching_value_does_not_warn(arguments: Sequence[str]) -> None:
    assert read(*arguments) == ({}, [], [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--disable-endpoint-subset-filter",),
            "--disable-endpoint-subset-filter: 'true' is not supported",
        ),
        (
            ("--model-server-metrics-scheme", "https"),
            "'https' is not supported: metrics are read over",
        ),
        (
            ("--model-server-metrics-port", "8001"),
            "--model-server-metrics-port: '8001' is not supported",
        ),
        (("--destination-endpoint-hint-key=x",), "the header is x-gateway-destination-endpoint"),
        (("--tls-min-version=VersionTLS13",), "the minimum version is TLS 1.2"),
        (("--metrics-cert-dir", "/certs"), "the metrics port speaks plain HTTP"),
        (("--tracing=perhaps",), "--tracing: 'perhaps' is neither true nor false"),
        (("--zap-encoder",), "--zap-encoder: a value is missing"),
    ],
)
def test_unsupported_value_is_refused(arguments: Sequence[str], said: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        read(*arguments)
    assert said in str(caught.value)


def test_ignored_flag_warns_once() -> None:
    _, warned, _ = read("--v=3", "-v", "4")
    assert len(warned) == 1


def test_values_and_subcommand_arguments_are_not_translated() -> None:
    flags, warned, below = read("--config-text", "-poolName", "sub", "--tracing", "-poolName")
    assert flags == {"config_text": "-poolName"}
    assert below == ["--tracing", "-poolName"]
    assert warned == []


def test_unknown_flag_is_refused() -> None:
    group = LazyCommands()
    result = CliRunner().invoke(group, ["epp", "--pool-nam", "p"])
    assert result.exit_code == EXIT_WRONG_SETTING
    assert "No such option '--pool-nam'" in result.output


def test_every_switch_is_known_flag() -> None:
    known = {*inherited._OURS, *inherited.IGNORED, *inherited.REFUSED}
    assert not inherited._SWITCHES - known
    assert not {name for name, _ in inherited._MET} - set(inherited.IGNORED)
