"""Replicas for routers to choose from: real engines with kvtier's tiers, which tell their events.

Each computes on a core of its own. They are started side by side, since most of a start is
waiting for imports, and each tells KV events in the form that every router here understands.

Invariants: loopback only; after the context no process of any of them is left.
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
"""A little more than a block of the small model has."""
_DTYPE: Final = "float32"
"""Fast on any CPU, where bfloat16 needs instructions that many lack; and in it a prompt has the
same answer whether its prefix was computed or found."""
_MODEL_LEN: Final = 2048
"""The device's cache has to hold one prompt of this length."""
_FLAGS: Final = ("--enable-scale-out",)
"""vLLM refuses to tell prompts' tokens at `/v1/completions/render` without it, and the peer's
`kv_aware` asks there: it would choose by load alone, and say so in its debug log only."""
_DONE: Final = "vllm:request_success_total"


class EngineReplica(NamedTuple):
    """One that runs."""

    server: Server
    events: str
    """Where it publishes KV events, and where it tells again what was missed."""
    replay: str

    @property
    def url(self) -> str:
        """What routers are told."""
        return f"http://{HOST}:{self.server.endpoint.port}"


class Counters(NamedTuple):
    """Of one replica, since it began."""

    requests: float
    hits: dict[str, float]
    """Prompt tokens by tier below the device."""
    cpu_s: float


def read_counters(replica: EngineReplica) -> Counters:
    """As they stand now. Raises ServerFailed where it tells nothing."""
    samples = replica.server.metrics()
    requests = sum(sample.value for sample in samples if sample.name == _DONE)
    return Counters(requests, lower_tier_hits(samples), replica.server.cpu_s())


@contextmanager
def replicas(model: Path, traffic: Traffic, scratch: Path) -> Iterator[list[EngineReplica]]:
    """All of them, healthy. Raises ServerFailed."""
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
    """Of replica `number`; `ports` are those of its events and of their replay."""
    transfer = kvtier_transfer(traffic.ram_blocks * BLOCK_BYTES)
    transfer["kv_connector_extra_config"]["self_describing_kv_events"] = True
    events: dict[str, Any] = {"enable_kv_cache_events": True, "publisher": "zmq"}
    # Only a wildcard is bound; anything else would be connected to, and nobody would hear.
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
        starts = [pool.submit(server.start, _nobody_is_told) for server in servers]
        try:
            for start in starts:
                start.result()
        except BaseException:
            # The others' threads wait for servers that need not come up any more.
            for server in servers:
                server.stop()
            raise


def _nobody_is_told(news: str) -> None:
    """Steps belong to one thread."""
