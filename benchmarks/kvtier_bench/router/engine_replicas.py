"""The real replicas that routers choose from: engines with kvtier's tiers that publish KV events.

Each computes on a core of its own. They are started in parallel, because most of the start is spent
in imports. Their KV events have the form that every measured router understands.

Invariants: replicas listen on loopback only; after the context no process of theirs is left.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from kvtier_bench.lineup import kvtier_transfer
from kvtier_bench.router.traffic import Traffic
from kvtier_bench.runs import lower_tier_hits
from kvtier_bench.server import HOST, Server, ServerSettings, free_port

REPLICAS: Final = 2
BLOCK_BYTES: Final = 6 << 20
"""A little more than the size of a block of the small model."""
_DTYPE: Final = "float32"
"""Fast on any CPU, while bfloat16 needs instructions that many lack. In float32 a prompt also has
the same answer whether its prefix was computed or found."""
_MODEL_LEN: Final = 2048
"""The device cache must hold one prompt of this length."""
_FLAGS: Final = ("--enable-scale-out",)
"""Without it, vLLM refuses `/v1/completions/render`, which the peer's `kv_aware` asks for the
tokens of a prompt. It would then choose by load alone, and say so only in its debug log."""
_DONE: Final = "vllm:request_success_total"


class EngineReplica(NamedTuple):
    """A running engine and the addresses of its KV events."""

    server: Server
    events: str
    """The address where it publishes KV events."""
    replay: str
    """The address where it replays KV events that a subscriber missed."""

    @property
    def url(self) -> str:
        """The URL that routers are given."""
        return f"http://{HOST}:{self.server.endpoint.port}"


class Counters(NamedTuple):
    """The counters of one replica since its start."""

    requests: float
    hits: dict[str, float]
    """Prompt tokens that each tier below the device served."""
    cpu_s: float


def read_counters(replica: EngineReplica) -> Counters:
    """Return the current counters. Raises ServerFailed if the replica does not report metrics."""
    samples = replica.server.metrics()
    requests = sum(sample.value for sample in samples if sample.name == _DONE)
    return Counters(requests, lower_tier_hits(samples), replica.server.cpu_s())


@contextmanager
def replicas(model: Path, traffic: Traffic, scratch: Path) -> Iterator[list[EngineReplica]]:
    """Start the replicas and yield them when all are healthy. Raises ServerFailed."""
    with ExitStack() as stack:
        made = []
        for number in range(REPLICAS):
            events, replay = free_port(), free_port()
            told = settings(model, traffic, scratch, number, (events, replay))
            server = stack.enter_context(Server(told))
            made.append(EngineReplica(server, f"tcp://{HOST}:{events}", f"tcp://{HOST}:{replay}"))
        _start([replica.server for replica in made])
        yield made


def settings(
    model: Path, traffic: Traffic, scratch: Path, number: int, ports: tuple[int, int]
) -> ServerSettings:
    """Return the settings of replica `number`; `ports` are those of its events and their replay."""
    transfer = kvtier_transfer(traffic.ram_blocks * BLOCK_BYTES)
    transfer["kv_connector_extra_config"]["self_describing_kv_events"] = True
    events: dict[str, Any] = {"enable_kv_cache_events": True, "publisher": "zmq"}
    # vLLM binds wildcard addresses only; to any other it would connect, and publish to nobody.
    events |= {"endpoint": f"tcp://*:{ports[0]}", "replay_endpoint": f"tcp://*:{ports[1]}"}
    return ServerSettings(
        model=model,
        device_blocks=traffic.device_blocks,
        log=scratch / f"replica-{number}.log",
        kv_transfer=transfer,
        kv_events=events,
        flags=_FLAGS,
        dtype=_DTYPE,
        max_model_len=_MODEL_LEN,
        omp_cores=str(number),
    )


def _start(servers: Sequence[Server]) -> None:
    with ThreadPoolExecutor(len(servers)) as pool:
        starts = [pool.submit(server.start, _ignore) for server in servers]
        try:
            for start in starts:
                start.result()
        except BaseException:
            # The other threads are still waiting for their servers, which are no longer needed.
            for server in servers:
                server.stop()
            raise


def _ignore(news: str) -> None:
    """Discard the progress of a server: `Steps` may be used by one thread only."""
