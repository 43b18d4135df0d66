"""`kvtier epp`: the endpoint picker for gateways, and an Envoy configuration for it."""

import asyncio
import logging
import signal
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, Final

import click

from kvtier.cli.gauges import gauge_flags, gauges
from kvtier.cli.inherited import Inheriting, warnings
from kvtier.cli.pods import objectives, pod_flags, pods
from kvtier.cli.process import EXIT_INTERRUPTED, run_server
from kvtier.clock import MonotonicClock, seeded
from kvtier.errors import InvalidSettings
from kvtier.router import assembly
from kvtier.router.choose import plugins
from kvtier.router.config import reading as config
from kvtier.router.epp import envoy
from kvtier.router.epp.conversation import BodyMode
from kvtier.router.epp.picking import PickingOptions
from kvtier.router.epp.process import Process, ProcessDependencies, ProcessOptions
from kvtier.router.epp.service import StreamOptions
from kvtier.router.filters.utilization_detector import UtilizationDetector
from kvtier.router.fleet.objectives import Objectives
from kvtier.router.fleet.replicas import (
    FileDiscovery,
    ReplicaDiscovery,
    StaticDiscovery,
    distinct,
    parse_replica,
)
from kvtier.router.learn.evictors import parse_evictors
from kvtier.settings.sizes import parse_duration, parse_size

_log = logging.getLogger("kvtier.epp")
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"
_MODES: Final = {
    "full-duplex": BodyMode.FULL_DUPLEX,
    "buffered": BodyMode.BUFFERED,
    "none": BodyMode.NONE,
}
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_PORT: Final = click.IntRange(0, 65535)
_FILE: Final = click.Path(path_type=Path, dir_okay=False)


@click.group(
    cls=Inheriting,
    invoke_without_command=True,
    epilog="""\b
Examples:
  kvtier epp --endpoint http://127.0.0.1:8000 --endpoint http://127.0.0.1:8001
  kvtier epp --endpoints replicas.yaml --config-file picker.yaml --insecure
  kvtier epp --pool-name vllm-pool --pool-namespace default --host 0.0.0.0
  kvtier epp envoy-config --endpoint 127.0.0.1:8000 --endpoint 127.0.0.1:8001 > envoy.yaml
""",
)
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="URL",
    help="URL of a replica; repeat for several.",
)
@click.option(
    "--endpoints", "listed", type=_FILE, help="YAML file of replicas, reloaded when it changes."
)
@pod_flags
@gauge_flags
@click.option("--config-file", type=_FILE, help="EndpointPickerConfig file, of either generation.")
@click.option("--config-text", metavar="YAML", help="EndpointPickerConfig as text.")
@click.option(
    "--tokenizer",
    "tokenizers",
    multiple=True,
    metavar="[MODEL=]FOLDER",
    help="Compare prompts by this tokenizer's tokens instead of characters; repeat.",
)
@click.option(
    "--evictor-events",
    "evictors",
    multiple=True,
    metavar="ENDPOINT",
    help="Address of `kvtier evict --events`, as tcp://evictor:5559; repeat for several.",
)
@click.option("--host", default="127.0.0.1", help="Address to listen on.  [127.0.0.1]")
@click.option("--grpc-port", type=_PORT, default=9002, help="Port for gateways.  [9002]")
@click.option(
    "--grpc-health-port", type=_PORT, default=9003, help="Port of gRPC health checks.  [9003]"
)
@click.option("--metrics-port", type=_PORT, default=9090, help="Port of /metrics.  [9090]")
@click.option("--insecure", is_flag=True, help="Serve gateways in plain text instead of TLS.")
@click.option(
    "--tls-certificate", type=_FILE, help="Certificate (PEM); by default a self-signed one."
)
@click.option("--tls-key", type=_FILE, help="Private key of --tls-certificate (PEM).")
@click.option(
    "--fallbacks",
    type=click.IntRange(0, 16),
    default=2,
    help="Number of replicas named after the best.  [2]",
)
@click.option(
    "--observe-responses", is_flag=True, help="Keep streams open to follow the responses."
)
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    metavar="NAME=N",
    help="Priority of an objective; below 0, requests are shed under load. Repeat for several.",
)
@click.option("--max-body", default="64MiB", help="Answer larger bodies with 413.  [64MiB]")
@click.option(
    "--drain", default="5s", help="Go on answering this long after a signal to stop.  [5s]"
)
@click.option(
    "--body-mode",
    type=click.Choice(list(_MODES)),
    default="full-duplex",
    help="Body mode of gateways that do not report theirs.  [full-duplex]",
)
@click.option(
    "--test-endpoint-selection",
    is_flag=True,
    help="Obey the header test-epp-endpoint-selection; for conformance tests.",
)
@click.pass_context
def epp(context: click.Context, /, **flags: Any) -> None:
    """Choose endpoints for gateways that ask through Envoy's ext_proc.

    By default it listens on loopback, with TLS and a self-signed certificate. A gateway's stream is
    closed once its request is placed, so that responses do not pass through the picker.
    """
    if context.invoked_subcommand is not None:
        return
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    discovery = _discovery(flags)
    configuration = _configuration(flags)
    for warning in (*warnings(context), *configuration.warnings, *_unreachable(flags)):
        _log.warning("%s", warning)
    assembled = assembly.Assembly(
        configuration,
        tokenizers=_tokenizers(flags["tokenizers"]),
        names=gauges(flags, configuration.gauges),
        evictors=parse_evictors(flags["evictors"], "--evictor-events"),
    )
    wiring = ProcessDependencies(
        discovery=discovery,
        chooser=assembled.choices.of(None),
        prompts=assembled.prompts,
        saturation=_detector(configuration).saturation,
        listeners=assembled.listeners,
        collectors=assembled.collectors,
    )
    priorities = Objectives(dict(_objective(text) for text in flags["objectives"]))
    options = _options(flags, priorities)
    around = (assembled, objectives(flags, priorities))
    if run_server(_run(Process(options, wiring), around, options)) == signal.SIGINT:
        context.exit(EXIT_INTERRUPTED)


async def _run(
    process: Process, around: Sequence[AbstractAsyncContextManager[object]], options: ProcessOptions
) -> int:
    """Run until a signal and drain; return the signal's number. A second signal skips the drain."""
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.put_nowait, number)
    async with AsyncExitStack() as stack:
        for context in around:
            await stack.enter_async_context(context)
        first = asyncio.create_task(signals.get())
        # A signal also stops a start that waits for an unreachable cluster.
        working = asyncio.create_task(process.start())
        try:
            await asyncio.wait((working, first), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
                _log.info("%s", _listening(process, options))
                await first
                working = asyncio.create_task(process.drain())
                second = asyncio.create_task(signals.get())
                await asyncio.wait((working, second), return_when=asyncio.FIRST_COMPLETED)
                second.cancel()
            return await first
        finally:
            first.cancel()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await process.close()


def _listening(process: Process, options: ProcessOptions) -> str:
    security = "TLS" if options.is_secure else "plain text"
    return (
        f"listening on {options.host}: gateways on port {process.port} ({security}), "
        f"health on {process.health_port}, metrics on {process.metrics_port}"
    )


def _unreachable(flags: dict[str, Any]) -> list[str]:
    """Warn if the picker runs in a cluster, where gateways are elsewhere, but uses loopback."""
    if not (flags["pool_name"] or flags["selector"]) or flags["host"] not in _LOOPBACK:
        return []
    return [f"gateways in the cluster cannot reach {flags['host']}: give --host 0.0.0.0"]


def _options(flags: dict[str, Any], priorities: Objectives) -> ProcessOptions:
    certificate, key = flags["tls_certificate"], flags["tls_key"]
    if (certificate is None) != (key is None):
        raise InvalidSettings("--tls-certificate and --tls-key: give both or neither")
    if flags["insecure"] and certificate is not None:
        raise InvalidSettings("--insecure and --tls-certificate: give only one of them")
    return ProcessOptions(
        host=flags["host"],
        port=flags["grpc_port"],
        health_port=flags["grpc_health_port"],
        metrics_port=flags["metrics_port"],
        is_secure=not flags["insecure"],
        certificate=certificate,
        key=key,
        drain_s=parse_duration(flags["drain"], "--drain"),
        stream=StreamOptions(
            body_mode=_MODES[flags["body_mode"]],
            max_body_bytes=parse_size(flags["max_body"], "--max-body"),
            observes=flags["observe_responses"],
        ),
        picking=PickingOptions(
            fallbacks=flags["fallbacks"],
            objectives=priorities,
            takes_test_selection=flags["test_endpoint_selection"],
        ),
    )


def _detector(configuration: config.Configuration) -> UtilizationDetector:
    """Return the saturation detector of the configuration, or one with the usual parameters."""
    given = (
        spec.parameters
        for spec in configuration.plugins.values()
        if isinstance(spec.parameters, UtilizationDetector.Parameters)
    )
    parameters = next(given, UtilizationDetector.Parameters())
    context = plugins.PluginContext(
        name="saturation", random=seeded(0), now_s=MonotonicClock().now_s
    )
    return UtilizationDetector(parameters, context)


def _tokenizers(texts: Sequence[str]) -> dict[str, Path]:
    pairs = (text.rpartition("=") for text in texts)
    return {model or assembly.EVERY_MODEL: Path(folder) for model, _, folder in pairs}


def _objective(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    try:
        return name, int(number)
    except ValueError:
        raise InvalidSettings(f"--objective: {text!r} is not NAME=N; write batch=-1") from None


def _discovery(flags: dict[str, Any]) -> ReplicaDiscovery:
    fixed = distinct(
        [parse_replica(text, "--endpoint") for text in flags["endpoints"]], "--endpoint"
    )
    in_cluster = pods(flags, (fixed, flags["listed"]))
    if in_cluster is not None:
        return in_cluster
    if flags["listed"] is not None:
        return FileDiscovery(str(flags["listed"]), fixed, flag="--endpoints")
    if not fixed:
        raise InvalidSettings(
            "no replicas: give --endpoint, --endpoints, --pool-name or --selector"
        )
    return StaticDiscovery(fixed)


def _configuration(flags: dict[str, Any]) -> config.Configuration:
    path, text = flags["config_file"], flags["config_text"]
    if path is not None and text is not None:
        raise InvalidSettings("--config-file and --config-text: give only one of them")
    if text is not None:
        return config.parse_configuration(text, "--config-text")
    return config.read_configuration(None if path is None else str(path), "--config-file")


@epp.command(
    "envoy-config",
    epilog="\b\nExample:\n  kvtier epp envoy-config --endpoint 127.0.0.1:8000 > envoy.yaml",
)
@click.option("--listen", default="127.0.0.1:8080", help="Envoy's address.  [127.0.0.1:8080]")
@click.option(
    "--picker",
    default="127.0.0.1:9002",
    help="Address of kvtier epp, which may be a host name.  [127.0.0.1:9002]",
)
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    required=True,
    help="IP address and port of a replica; repeat for several.",
)
@click.option("--admin", help="Address of Envoy's admin interface, as 127.0.0.1:9901.")
@click.option("--insecure", is_flag=True, help="Connect to the picker in plain text.")
@click.option("--ca", help="CA certificates (PEM) that verify the picker's certificate.")
@click.option(
    "--picker-san", help="DNS name that the picker's certificate must be for; needs --ca."
)
@click.option("--fail-close", is_flag=True, help="Refuse requests while the picker is down.")
@click.option("--buffered", is_flag=True, help="Buffer bodies in Envoy instead of streaming them.")
@click.option(
    "--observe-responses", is_flag=True, help="Show responses to a picker with the same flag."
)
@click.option("--retries", type=click.IntRange(0, 16), default=2, help="Fallbacks to try.  [2]")
@click.option(
    "--health-path",
    default="/health",
    help="Path of the replicas' health check; empty: no checks.  [/health]",
)
def envoy_config(*, endpoints: Sequence[str], **flags: Any) -> None:
    """Print an Envoy configuration that uses the picker."""
    parse = envoy.Address.parse
    settings = envoy.EnvoySettings(
        listen=parse(flags["listen"], "--listen"),
        picker=parse(flags["picker"], "--picker", may_be_name=True),
        replicas=[parse(text, "--endpoint") for text in endpoints],
        admin=parse(flags["admin"], "--admin") if flags["admin"] else None,
        is_secure=not flags["insecure"],
        ca_path=flags["ca"],
        picker_san=flags["picker_san"],
        fails_open=not flags["fail_close"],
        is_buffered=flags["buffered"],
        shows_responses=flags["observe_responses"],
        retries=flags["retries"],
        health_path=flags["health_path"],
    )
    if settings.ca_path and not Path(settings.ca_path).exists():
        click.echo(f"warning: --ca: {settings.ca_path} does not exist on this machine", err=True)
    click.echo(envoy.render(settings), nl=False)
