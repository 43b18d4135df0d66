"""KV events say which block entered and left which medium, by its hash.

The tests keep a ledger of the events, as a router would, and compare it with what the cache
holds.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.engine.conftest import MADE_UP, Start
from tests.engine.engine import Engine

BLOCK = 128
SIZE = 5 * BLOCK + 10
QUIET_S = 1.0


class Stored(NamedTuple):
    hash: int
    parent: int | None
    token_ids: list[int]
    medium: str


class Removed(NamedTuple):
    hash: int
    medium: str


class Ledger:
    """A reader of the engine's events that keeps which medium holds which blocks."""

    def __init__(self, endpoint: str) -> None:
        zmq = pytest.importorskip("zmq")
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(endpoint)
        self.stored: list[Stored] = []
        self.removed: list[Removed] = []
        self.held: dict[str, set[int]] = {"GPU": set(), "CPU": set(), "STORAGE": set()}

    def read(self) -> None:
        """Read events until none comes for `QUIET_S`."""
        while self._socket.poll(QUIET_S * 1_000):
            _, _, payload = self._socket.recv_multipart()
            for event in msgspec.msgpack.decode(payload)[1]:
                self._take(event)

    def skip(self) -> bool:
        """Drop the events that have arrived; return whether there were any."""
        arrived = False
        while self._socket.poll(100):
            self._socket.recv_multipart()
            arrived = True
        return arrived

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()

    def _take(self, event: dict[str, Any]) -> None:
        medium = event.get("medium")
        if event["type"] == "BlockStored":
            parent, size = event["parent_block_hash"], event["block_size"]
            for number, found in enumerate(event["block_hashes"]):
                tokens = event["token_ids"][number * size : (number + 1) * size]
                self.stored.append(Stored(found, parent, tokens, medium))
                self.held[medium].add(found)
                parent = found
        elif event["type"] == "BlockRemoved":
            for found in event["block_hashes"]:
                self.removed.append(Removed(found, medium))
                # A block must have been announced before it is removed.
                self.held[medium].remove(found)


class Announced(NamedTuple):
    engine: Engine
    ledger: Ledger


@pytest.fixture(scope="module")
def announced(
    start: Start,
    made_up: Callable[[str], Path],
    noise: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Announced]:
    folder = tmp_path_factory.mktemp("events")
    endpoint = f"ipc://{folder / 'socket'}"
    settings = {
        "ram": "1536KiB",
        "disk": f"{folder / 'disk'}=4MiB",
        "self_describing_kv_events": True,
    }
    ledger = Ledger(endpoint)
    try:
        with start(made_up("llama"), settings, events=endpoint, **MADE_UP) as engine:
            subscribe(engine, ledger, noise)
            yield Announced(engine, ledger)
    finally:
        ledger.close()


def subscribe(engine: Engine, ledger: Ledger, noise: list[int]) -> None:
    """Wait until the subscription has reached the engine, then let engine and ledger be empty.

    An engine publishes from its first step on, and its first events may find no subscriber.
    """
    for number in range(100):
        engine.ask(noise[:SIZE], max_tokens=1, salt=f"subscription {number}")
        if ledger.skip():
            break
    assert engine.call("reset", connector=True)
    flush(engine, noise)
    ledger.skip()


def flush(engine: Engine, noise: list[int]) -> None:
    """Run a request that stores nothing: events are sent with an engine step."""
    engine.call("settle")
    engine.ask(noise[:10], max_tokens=1)
    time.sleep(0.05)


def test_events_announce_block_in_each_medium_by_one_hash(
    announced: Announced, noise: list[int]
) -> None:
    engine, ledger = announced
    engine.ask(noise[:SIZE], max_tokens=1)
    flush(engine, noise)
    ledger.read()
    told = {
        medium: {
            tuple(event.token_ids): (event.hash, event.parent)
            for event in ledger.stored
            if event.medium == medium
        }
        for medium in ledger.held
    }
    blocks = [tuple(noise[place : place + BLOCK]) for place in range(0, 5 * BLOCK, BLOCK)]
    assert set(told["GPU"]) == set(blocks)
    parents = [None, *(told["GPU"][block][0] for block in blocks[:-1])]
    assert [told["GPU"][block][1] for block in blocks] == parents
    assert told["CPU"] == told["STORAGE"] == told["GPU"]


def test_events_match_resident_blocks_when_tiers_overflow(
    announced: Announced, noise: list[int]
) -> None:
    engine, ledger = announced
    for place in range(SIZE, len(noise) - SIZE, SIZE):
        engine.ask(noise[place : place + SIZE], max_tokens=1)
        engine.call("settle")
    flush(engine, noise)
    ledger.read()
    counted = engine.counters()
    assert {event.medium for event in ledger.removed} >= {"CPU", "STORAGE"}
    for tier, medium in (("ram", "CPU"), ("disk", "STORAGE")):
        assert counted[tier]["evicted_blocks"] > 0
        assert counted[tier]["resident"] == len(ledger.held[medium])
    engine.call("check")


def test_events_of_reset_remove_every_block(announced: Announced, noise: list[int]) -> None:
    engine, ledger = announced
    assert engine.call("reset", connector=True)
    flush(engine, noise)
    ledger.read()
    assert ledger.held["CPU"] == ledger.held["STORAGE"] == set()
