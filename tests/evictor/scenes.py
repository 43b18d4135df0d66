"""Stores for the evictor's tests: what writers and readers leave in them."""

import hashlib
import threading
from collections.abc import Sequence

import numpy as np

from kvtier.clock import VirtualClock
from kvtier.evictor.context import PassContext
from kvtier.evictor.options import EvictorOptions
from kvtier.evictor.report import SilentObserver
from kvtier.testing.memory_store import MemoryStore
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.store import ListPage, Read, Stat, Store

TREE = "tiny-0123456789abcdef"
FOREIGN = "org_model_0123456789ab_r0"
START_S = 1.8e9


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
        """As a reader tells it."""
        self._journals += 1
        text = "".join(f"{below(number)}\n" for number in numbers)
        self.store.put(f"{tree}/access/host-1-ab-{self._journals:08d}.log", text.encode())

    def blocks(self, tree: str = TREE, among: int = 1000) -> list[int]:
        """Numbers of the blocks that are there."""
        names = set(self.names())
        return [number for number in range(among) if block(number, tree) in names]

    def names(self, folder: str = "") -> list[str]:
        return [entry.name for entry in self.store.list(folder, limit=100_000).entries]

    def context(self, store: Store | None = None, **options: object) -> PassContext:
        """One pass without leases."""
        return PassContext(
            store or self.store,
            EvictorOptions(**options),  # type: ignore[arg-type]
            self.clock,
            lambda _shard: None,
            self.clock.now_s(),
            SilentObserver(),
        )


class Between:
    """A store that calls back before each call: to look, to wait, to die."""

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
    """As by the kernel: nothing is put in order."""


class Actor:
    """Something that runs step by step: it stands still before each call of its store.

    Its clock shows what it likes, but goes as fast as the true one.
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
        """What it does; overridden."""

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
        """Wait for the next turn."""
        self.next_call = call
        self._stands.release()
        self._go.acquire()
        if self.dead:
            raise Killed

    def turn(self) -> None:
        """Let it take one step."""
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
    """True time, and whose turn it is."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.actors: list[Actor] = []

    def ready(self) -> list[Actor]:
        """Who can take a step now; time jumps where nobody can."""
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
