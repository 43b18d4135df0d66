"""Stores with blocks and journals, and a simulation of several evictors, for the tests."""

import hashlib
import threading
from collections.abc import Sequence

import numpy as np

from kvtier.blocks.checksum import Checksum
from kvtier.blocks.key import BlockKey
from kvtier.clock import VirtualClock
from kvtier.evictor.context import PassContext
from kvtier.evictor.options import EvictorOptions
from kvtier.evictor.report import SilentObserver
from kvtier.testing.memory_store import MemoryStore
from kvtier.testing.samples import sample_space
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.format import Segment, encode_header, segment_name
from kvtier.tiers.shared.manifest import ensure_manifest
from kvtier.tiers.shared.store import ListPage, Read, Stat, Store

TREE = "tiny-0123456789abcdef"
FOREIGN = "org_model_0123456789ab_r0"
START_S = 1.8e9
SPACE = sample_space()
SECRET = bytes(range(32))


def key_of(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() + bytes(4)


def below(number: int) -> str:
    digits = key_of(number).hex()
    return f"blocks/{digits[:3]}/{digits}.kvt"


def block(number: int, tree: str = TREE) -> str:
    return f"{tree}/{below(number)}"


class Scene:
    """A store in RAM whose clock the test moves."""

    def __init__(self) -> None:
        self.clock = VirtualClock(START_S)
        self.store = MemoryStore(self.clock)
        self._journals = 0

    def write(self, *numbers: int, size: int = 1000, tree: str = TREE) -> None:
        for number in numbers:
            assert self.store.publish(block(number, tree), [np.zeros(size, np.uint8)])

    def read(self, *numbers: int, tree: str = TREE) -> None:
        """Write a journal that reports a read of these blocks."""
        self._journals += 1
        text = "".join(f"{below(number)}\n" for number in numbers)
        self.store.put(f"{tree}/access/host-1-ab-{self._journals:08d}.log", text.encode())

    def blocks(self, tree: str = TREE, among: int = 1000) -> list[int]:
        """Return the numbers of the blocks in the store."""
        names = set(self.names())
        return [number for number in range(among) if block(number, tree) in names]

    def names(self, folder: str = "") -> list[str]:
        return [entry.name for entry in self.store.list(folder, limit=100_000).entries]

    def context(self, store: Store | None = None, **options: object) -> PassContext:
        """Return the context of a pass without leases."""
        return PassContext(
            store or self.store,
            EvictorOptions(**options),  # type: ignore[arg-type]
            self.clock,
            lambda _shard: None,
            self.clock.now_s(),
            SilentObserver(),
        )


def publish_segment(store: MemoryStore, number: int, checksum: Checksum, blocks: int = 2) -> str:
    """Publish a valid segment with a manifest, and return its name in the store."""
    tree = ensure_manifest(store, SPACE, checksum)
    keys = tuple(BlockKey(key_of(number + 1000 * each)) for each in range(blocks))
    segment = Segment(
        keys=keys,
        checksums=tuple(bytes(16) for _ in keys),
        parent=None,
        block_bytes=SPACE.block_bytes,
        space_digest=bytes.fromhex(SPACE.digest),
        algorithm=checksum.algorithm,
    )
    header = np.frombuffer(encode_header(segment, checksum), np.uint8)
    payload = np.zeros(segment.total_bytes - header.nbytes, np.uint8)
    name = f"{tree}/{segment_name(keys[0])}"
    assert store.publish(name, [header, payload])
    return name


class Between:
    """A store that records each call, and calls `before` ahead of it."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.calls: list[tuple[str, str]] = []

    def before(self, verb: str, name: str) -> None:
        self.calls.append((verb, name))

    def publish(self, name: str, parts: Sequence[Buffer]) -> bool:
        self.before("publish", name)
        return self.inner.publish(name, parts)

    def put(self, name: str, data: bytes) -> Stat:
        self.before("put", name)
        return self.inner.put(name, data)

    def read(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        self.before("read", name)
        return self.inner.read(name, offset, buffers)

    def stat(self, name: str) -> Stat | None:
        self.before("stat", name)
        return self.inner.stat(name)

    def remove(self, name: str) -> bool:
        self.before("remove", name)
        return self.inner.remove(name)

    def move(self, name: str, to: str) -> bool:
        self.before("move", name)
        return self.inner.move(name, to)

    def list(self, folder: str, after: str = "", limit: int = 1000) -> ListPage:
        self.before("list", folder)
        return self.inner.list(folder, after, limit)

    def close(self) -> None:
        self.inner.close()


class Killed(BaseException):
    """Raised in an actor that is killed. A BaseException, so that no handler cleans up."""


class Actor:
    """A thread that runs step by step: it stops before each call of its store.

    Its clock has an offset, but the same rate as the true one.
    """

    def __init__(self, world: "World", offset_s: float) -> None:
        self.world = world
        self.offset_s = offset_s
        self.wakes_s = -float("inf")
        self.next_call = ("", "")
        self.dead = False
        self.done = False
        self._go = threading.Semaphore(0)
        self._stands = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._stands.acquire()

    def live(self) -> None:
        """Run the actor; overridden by subclasses."""

    def _main(self) -> None:
        try:
            self.stand(("start", ""))
            self.live()
        except Killed:
            pass
        finally:
            self.done = True
            self._stands.release()

    def stand(self, call: tuple[str, str]) -> None:
        """Stop before `call` until the next turn."""
        self.next_call = call
        self._stands.release()
        self._go.acquire()
        if self.dead:
            raise Killed

    def turn(self) -> None:
        """Let the actor take one step."""
        self._go.release()
        self._stands.acquire()

    def kill(self) -> None:
        self.dead = True
        self.turn()
        self._thread.join()

    def now_s(self) -> float:
        return self.world.scene.clock.now_s() + self.offset_s

    def sleep(self, seconds: float) -> None:
        self.wakes_s = self.world.scene.clock.now_s() + seconds
        self.stand(("sleep", ""))


class World:
    """The true time, and the actors that take turns."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.actors: list[Actor] = []

    def ready(self) -> list[Actor]:
        """Return the actors that can take a step; advance the time if there are none."""
        alive = [actor for actor in self.actors if not actor.done]
        now_s = self.scene.clock.now_s()
        first_s = min(actor.wakes_s for actor in alive)
        if first_s > now_s:
            self.scene.clock.advance(first_s - now_s)
            now_s = first_s
        return [actor for actor in alive if actor.wakes_s <= now_s]

    def end(self) -> None:
        for actor in self.actors:
            if not actor.done:
                actor.kill()
