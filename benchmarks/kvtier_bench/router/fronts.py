"""Who takes part before real replicas: the same replicas for all, each router as it is meant.

kvtier's default follows KV events; 2:2:1:1 is the CPU-offloading guide's own configuration and
estimates; both have the model's tokenizer. The peer's `kv_aware` gets the events too, with the
engine's block size. Nothing else is set: everybody runs by their own defaults.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kvtier_bench.router import contest
from kvtier_bench.router.pair import Replica

TIERED: Final = "kvtier route, 2:2:1:1"
OURS: Final = (contest.DEFAULT, TIERED)
OTHERS: Final = (
    contest.ROUND_ROBIN,
    contest.PEER_ROUND_ROBIN,
    contest.PEER_CACHE_AWARE,
    contest.PEER_KV_AWARE,
)
PROFILE: Final = "tiered-prefix-cache.yaml"
BLOCK_TOKENS: Final = 128
"""Of vLLM on a CPU."""


def fronts(
    replicas: Sequence[Replica], model: Path, *, peer: Path, examples: Path, scratch: Path
) -> dict[str, list[str]]:
    """Whole commands by name, in the order shown; the peer takes part where it is installed."""
    server = replicas[0].server
    known = contest.contestants(peer, scratch, server.endpoint.model)
    known[TIERED] = known[contest.DEFAULT]
    plain = [part for one in replicas for part in ("--replica", one.url)]
    tokens = ["--tokenizer", f"{server.endpoint.model}={model}"]
    workers = ["--worker-urls", *(one.url for one in replicas)]
    told = {
        contest.DEFAULT: [*tokens, *_own_events(replicas)],
        TIERED: ["--profile", str(examples / PROFILE), *tokens, *plain],
        contest.ROUND_ROBIN: plain,
        contest.PEER_ROUND_ROBIN: workers,
        contest.PEER_CACHE_AWARE: workers,
        contest.PEER_KV_AWARE: [*workers, *_peer_events(replicas)],
    }
    return {name: [*known[name], *flags] for name, flags in told.items() if name in known}


def _own_events(replicas: Sequence[Replica]) -> list[str]:
    return [
        part
        for one in replicas
        for part in (
            "--replica",
            f"{one.url},label=kv-events:{one.events},label=kv-events-replay:{one.replay}",
        )
    ]


def _peer_events(replicas: Sequence[Replica]) -> list[str]:
    flags = ["--kv-event-block-size", str(BLOCK_TOKENS)]
    for one in replicas:
        flags += ["--kv-event-source", f"{one.url}={one.events}"]
        flags += ["--kv-event-replay-source", f"{one.url}={one.replay}"]
    return flags
