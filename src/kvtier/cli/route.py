"""`kvtier route`: an OpenAI-compatible router in front of replicas, and `kvtier route replay`."""

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from kvtier.cli.pods import pod_flags, pods
from kvtier.cli.process import EXIT_INTERRUPTED, run_server
from kvtier.errors import InvalidSettings
from kvtier.router import assembly, replay
from kvtier.router.choose import explain as explaining
from kvtier.router.choose import record
from kvtier.router.config import profiles
from kvtier.router.config import reading as config
from kvtier.router.fleet.replicas import (
    FileDiscovery,
    ReplicaDiscovery,
    StaticDiscovery,
    distinct,
    parse_replica,
)
from kvtier.router.learn.evictors import parse_evictors
from kvtier.router.request import sockets
from kvtier.router.route import keys, options
from kvtier.router.route.options import RouteOptions
from kvtier.router.route.server import Router, RouterDependencies

_log = logging.getLogger("kvtier.route")
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"
_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _setting_flags(command: _Command) -> _Command:
    """Add one flag for each setting in `options`."""
    for row in reversed(options.ROWS):
        default = "" if row.default is None else f"  [default: {row.format(row.default)}]"
        command = click.option(
            row.flag, row.name, metavar=_metavar(row), help=row.about.text + default
        )(command)
    return command


def _metavar(row: options.RouteOption) -> str:
    names = {"host": "ADDRESS", "port": "PORT", "explain": "|".join(row.choices)}
    return names.get(row.name, row.about.kind.value.upper())


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  kvtier route --replica http://127.0.0.1:8000 --replica http://127.0.0.1:8001 --port 30080
  kvtier route --replicas replicas.yaml --in-flight 64
  kvtier route --replicas replicas.yaml --profile picker.yaml --explain asked
  kvtier route --selector app=vllm --pool-namespace llm --host 0.0.0.0
  kvtier route --replica http://127.0.0.1:8000,label=kv-events:tcp://127.0.0.1:5557
  kvtier route replay decisions.jsonl --profile other.yaml

\b
Then send it requests as you would send them to one vLLM:
  curl http://127.0.0.1:30080/v1/completions -H 'Content-Type: application/json' \\
    -d '{"model": "NAME", "prompt": "Explain KV cache.", "max_tokens": 10}'

\b
replicas.yaml:
  replicas:
    a: http://10.0.0.1:8000
    b: {url: "http://10.0.0.2:8000", labels: {kv-events: "tcp://10.0.0.2:5557"}}
""",
)
@click.option(
    "--replica",
    "urls",
    multiple=True,
    metavar="URL[,model=NAME,...]",
    help="A replica. Repeat the flag for several. May also have ,name=NAME and ,label=KEY:VALUE.",
)
@click.option(
    "--profile",
    type=_FILE,
    metavar="FILE",
    help="EndpointPickerConfig (YAML, any version of its API) that says how replicas are chosen.  "
    "[default: by prefix and load]",
)
@click.option(
    "--strategy",
    default="",
    metavar="NAME",
    help="Strategy for requests without the header routing-strategy: a profile of --profile, or "
    "least-request, random, power-of-two, prefix-cache, ....",
)
@click.option(
    "--tokenizer",
    "tokenizers",
    multiple=True,
    metavar="[MODEL=]FOLDER",
    help="Folder of a tokenizer: prompts of the model (without MODEL=: of all models) are compared "
    "by tokens instead of characters.",
)
@pod_flags
@click.option(
    "--config",
    "file",
    metavar="FILE",
    help="YAML file of the settings below, as `port: 30080`.  [$KVTIER_ROUTE_CONFIG]",
)
@_setting_flags
@click.pass_context
def route(
    context: click.Context,
    /,
    urls: Sequence[str],
    profile: Path | None,
    strategy: str,
    tokenizers: Sequence[str],
    file: str | None,
    **flags: Any,
) -> None:
    """Route OpenAI requests to the replica that answers soonest.

    A replica is preferred if it holds the prefix of the prompt in a fast tier and has room for the
    request. Everything under /v1 that vLLM serves is passed through unchanged. A request can choose
    a strategy with the header `routing-strategy`. The router listens on 127.0.0.1 by default.

    Every setting below can also be a key of --config, or a variable: KVTIER_ROUTE_IN_FLIGHT=64.
    """
    if context.invoked_subcommand is not None:
        return
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    given = {row.name: flags.pop(row.name) for row in options.ROWS}
    settings = options.load(options.flags_of(given), file=file)
    discovery = _discovery(urls, settings, pods(flags, (urls, settings.replicas)))
    configuration = config.read_configuration(str(profile) if profile else None)
    for warning in configuration.warnings:
        _log.warning("%s", warning)
    replica_key = keys.replica_key(settings, os.environ)
    assembled = assembly.Assembly(
        configuration,
        default=strategy,
        replica_key=replica_key,
        tokenizers=_tokenizers(tokenizers),
        keeps_matches=settings.decisions is not None,
        evictors=parse_evictors((settings.evictor_events or "",), "--evictor-events"),
        tls=sockets.client_context(settings.replica_ca, "--replica-ca"),
    )
    dependencies = RouterDependencies(
        discovery=discovery,
        choices=assembled.choices,
        prompts=assembled.prompts,
        keys=keys.client_keys(settings, os.environ),
        replica_key=replica_key,
        listeners=assembled.listeners,
        collectors=assembled.collectors,
    )
    _open_files()
    number = run_server(_serve(settings, dependencies, assembled))
    if number == signal.SIGINT:
        context.exit(EXIT_INTERRUPTED)


@route.command(
    "replay",
    epilog="""\b
Example:
  kvtier route replay decisions.jsonl --profile other.yaml
  kvtier route replay decisions.jsonl --strategy least-request
  kvtier route replay decisions.jsonl --profile other.yaml --explain 7f3a91c0
""",
)
@click.argument("file", type=_FILE)
@click.option(
    "--profile",
    type=_FILE,
    metavar="FILE",
    help="EndpointPickerConfig to decide with.  [default: by prefix and load]",
)
@click.option(
    "--name", default="", metavar="NAME", help="Profile of --profile to use.  [default: the first]"
)
@click.option(
    "--strategy",
    default="",
    metavar="NAME",
    help="Strategy to decide with instead of a profile: least-request, random, ....",
)
@click.option(
    "--explain",
    default="",
    metavar="REQUEST_ID",
    help="Show how each scorer rated the replicas for one request.",
)
def replay_decisions(
    file: Path, profile: Path | None, name: str, strategy: str, explain: str
) -> None:
    """Decide the requests in FILE again, with another profile or strategy.

    FILE is a log that `kvtier route --decisions FILE` has written. Shows how many requests would
    go to another replica.
    """
    if strategy and (profile or name):
        raise InvalidSettings("--strategy replaces --profile and --name; give one or the other")
    by = (
        profiles.strategies_configuration()
        if strategy
        else config.read_configuration(str(profile) if profile else None)
    )
    records = record.read_records(str(file))
    if explain:
        found = replay.explained(records, by, explain, strategy or name)
        click.echo("\n".join(map(explaining.text, found)), nl=False)
        return
    click.echo(replay.text(replay.replay(records, by, strategy or name)), nl=False)


async def _serve(
    settings: RouteOptions, dependencies: RouterDependencies, assembled: assembly.Assembly
) -> int:
    """Run the router until SIGINT or SIGTERM; return the number of that signal."""
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.put_nowait, number)
    async with assembled:
        router = Router(settings, dependencies)
        first = asyncio.create_task(signals.get())
        try:
            if not await _unless(router.start(), first):
                return first.result()
            offered, members = len(router.fleet.available()), len(router.fleet.members)
            _log.info(
                "listening on %s://%s:%d; %d of %d replicas are available",
                "http" if settings.tls_certificate is None else "https",
                settings.host,
                router.port,
                offered,
                members,
            )
            await first
            second = asyncio.create_task(signals.get())
            await _unless(router.drain(is_interactive=first.result() == signal.SIGINT), second)
            second.cancel()
            return first.result()
        finally:
            first.cancel()
            await router.close()


async def _unless(work: Coroutine[Any, Any, None], signaled: asyncio.Task[int]) -> bool:
    """Await `work`, and cancel it at a signal (`signaled`); return True if it ended before that."""
    task = asyncio.create_task(work)
    await asyncio.wait((task, signaled), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False


def _open_files() -> None:
    """Raise the limit on open files to the hard limit: each stream needs two descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _discovery(
    urls: Sequence[str], settings: RouteOptions, in_cluster: ReplicaDiscovery | None
) -> ReplicaDiscovery:
    fixed = distinct([parse_replica(url, "--replica") for url in urls], "--replica")
    if in_cluster is not None:
        return in_cluster
    if settings.replicas is not None:
        return FileDiscovery(settings.replicas, fixed)
    if not fixed:
        raise InvalidSettings(
            "there are no replicas: give --replica http://host:8000, --replicas FILE, "
            "--pool-name or --selector"
        )
    return StaticDiscovery(fixed)


def _tokenizers(texts: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in texts:
        model, separator, folder = text.partition("=")
        name, path = (model, folder) if separator else (assembly.EVERY_MODEL, text)
        found[name] = Path(path).expanduser()
    return found
