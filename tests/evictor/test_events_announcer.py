"""Removals and the events that a router receives of them."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kvtier.blocks.checksum import HmacSha256, Xxh3
from kvtier.evictor.events import ANNOUNCE_S, BATCH_BLOCKS, EventAnnouncer, Publisher
from kvtier.evictor.evictor import Evictor
from kvtier.evictor.layouts import StoreTree
from kvtier.evictor.options import EvictorOptions
from kvtier.testing.samples import sample_space
from kvtier.tiers.shared.format import space_folder
from tests.evictor.scenes import FOREIGN, SECRET, Between, Scene, block, key_of, publish_segment

zmq = pytest.importorskip("zmq")

SPACE = sample_space()
OWN = StoreTree(space_folder(SPACE), is_foreign=False)


class Listener:
    """A router's SUB socket."""

    def __init__(self, publisher: Publisher) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(publisher.endpoint)
        while not self._socket.poll(20):
            publisher.send(b"hello", b"")

    def messages(self, count: int) -> list[tuple[bytes, list[dict[str, object]]]]:
        """Return the next `count` messages, without greetings."""
        found = []
        while len(found) < count:
            assert self._socket.poll(20_000), found
            name, _, payload = self._socket.recv_multipart()
            if name != b"hello":
                found.append((name, msgspec.msgpack.decode(payload)[1]))
        return found

    def silent(self) -> bool:
        """Return True if nothing but greetings arrives."""
        while self._socket.poll(100):
            if self._socket.recv_multipart()[0] != b"hello":
                return False
        return True

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher("tcp://127.0.0.1:*")
    yield made
    made.close()


@pytest.fixture
def listener(publisher: Publisher) -> Iterator[Listener]:
    made = Listener(publisher)
    yield made
    made.close()


def make_announcer(scene: Scene, publisher: Publisher, **options: object) -> EventAnnouncer:
    return EventAnnouncer(
        scene.store,
        publisher,
        EvictorOptions(**options),  # type: ignore[arg-type]
        "shared",
        clock=scene.clock,
        env={},
    )


def number_of(number: int) -> int:
    return int.from_bytes(key_of(number)[-12:-4], "big")


def test_announcer_sends_every_block_of_removed_files(
    publisher: Publisher, listener: Listener
) -> None:
    scene = Scene()
    for number in range(4):
        publish_segment(scene.store, number, Xxh3(), blocks=3)
    scene.clock.advance(1000)
    announcer = make_announcer(scene, publisher)
    evictor = Evictor(
        scene.store, EvictorOptions(ttl_s=100), clock=scene.clock, announcer=announcer
    )
    assert evictor.run_once().freed["ttl"].files == 4
    hashes: set[object] = set()
    while len(hashes) < 12:
        (name, events), *_ = listener.messages(1)
        assert name == f"kv@{OWN.name}@tiny".encode()
        for event in events:
            assert (event["type"], event["medium"], event["group_idx"]) == (
                "BlockRemoved",
                "STORAGE",
                0,
            )
            hashes.update(event["block_hashes"])  # type: ignore[arg-type]
    assert hashes == {number_of(n + 1000 * each) for n in range(4) for each in range(3)}
    assert (announcer.blocks, announcer.unread_files) == (12, 0)


def test_announcer_is_silent_in_dry_run(publisher: Publisher, listener: Listener) -> None:
    scene = Scene()
    publish_segment(scene.store, 1, Xxh3())
    scene.clock.advance(1000)
    announcer = make_announcer(scene, publisher)
    options = EvictorOptions(ttl_s=100, dry_run=True)
    assert (
        Evictor(scene.store, options, clock=scene.clock, announcer=announcer).run_once().freed_files
    )
    assert listener.silent()


def test_announcer_is_silent_about_files_not_removed(
    publisher: Publisher, listener: Listener
) -> None:
    scene = Scene()
    publish_segment(scene.store, 1, Xxh3())
    scene.clock.advance(1000)

    class Refusing(Between):
        def before(self, verb: str, name: str) -> None:
            if verb == "remove" and name.endswith(".kvt"):
                raise PermissionError(13, "no")

    announcer = make_announcer(scene, publisher)
    store = Refusing(scene.store)
    Evictor(store, EvictorOptions(ttl_s=100), clock=scene.clock, announcer=announcer).run_once()
    assert listener.silent()


def test_announcer_reads_no_header_of_single_block_segment(publisher: Publisher) -> None:
    scene = Scene()
    name = publish_segment(scene.store, 1, Xxh3(), blocks=1)
    store = Between(scene.store)
    announcer = EventAnnouncer(store, publisher, EvictorOptions(), "shared", env={})
    for _ in range(3):
        assert announcer.contents(OWN, key_of(1), name, 8192) == [key_of(1)]
    assert len([name for verb, name in store.calls if verb == "read"]) == 1, (
        "only the manifest is read, once"
    )


def test_announcer_sends_first_block_of_unreadable_file(
    publisher: Publisher, tmp_path: Path
) -> None:
    scene = Scene()
    name = publish_segment(scene.store, 1, HmacSha256(SECRET), blocks=2)
    announcer = make_announcer(scene, publisher)
    assert announcer.contents(OWN, key_of(1), name, 12288) == [key_of(1)]
    assert announcer.unread_files == 1
    secret = tmp_path / "key"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    knowing = make_announcer(scene, publisher, key_file=secret)
    assert len(knowing.contents(OWN, key_of(1), name, 12288)) == 2
    scene.store.raw(name)[150] ^= 1
    assert knowing.contents(OWN, key_of(1), name, 12288) == [key_of(1)]
    assert knowing.unread_files == 1


def test_announcer_sends_blocks_of_foreign_trees(publisher: Publisher, listener: Listener) -> None:
    scene = Scene()
    scene.store.put(f"{FOREIGN}/config.json", b'{"model_name": "org/model", "more": 1}')
    scene.store.put(f"{FOREIGN}/abc/de_g3/00ff.bin", b"x")
    scene.clock.advance(1000)
    announcer = make_announcer(scene, publisher)
    Evictor(
        scene.store, EvictorOptions(ttl_s=100), clock=scene.clock, announcer=announcer
    ).run_once()
    ((name, events),) = listener.messages(1)
    assert name == f"kv@{FOREIGN}@org/model".encode()
    assert [(one["block_hashes"], one["group_idx"]) for one in events] == [([255], 3)]


def test_announcer_batches_by_count_and_age(publisher: Publisher, listener: Listener) -> None:
    scene = Scene()
    announcer = make_announcer(scene, publisher)
    keys = [key_of(number) for number in range(BATCH_BLOCKS + 1)]
    announcer.removed(OWN, keys[:1])
    assert listener.silent()
    scene.clock.advance(ANNOUNCE_S)
    announcer.removed(OWN, keys[:1])
    assert len(listener.messages(1)[0][1][0]["block_hashes"]) == 2  # type: ignore[arg-type]
    announcer.removed(OWN, keys)
    sizes = [len(events[0]["block_hashes"]) for _, events in listener.messages(2)]  # type: ignore[arg-type]
    assert sizes == [BATCH_BLOCKS, 1]
    announcer.flush()
    assert listener.silent()


def test_announcer_sends_quarantined_block(publisher: Publisher, listener: Listener) -> None:
    scene = Scene()
    name = publish_segment(scene.store, 1, Xxh3())
    scene.store.raw(name)[150] ^= 1
    options = EvictorOptions(ttl_s=10**6, check_headers=True, sweep_broken=True)
    announcer = make_announcer(scene, publisher)
    Evictor(scene.store, options, clock=scene.clock, announcer=announcer).run_once()
    ((_, events),) = listener.messages(1)
    assert events[0]["block_hashes"] == [number_of(1)]


def test_announcer_sends_first_block_without_manifest(
    publisher: Publisher, listener: Listener
) -> None:
    scene = Scene()
    scene.write(1)
    scene.clock.advance(1000)
    announcer = make_announcer(scene, publisher)
    Evictor(
        scene.store, EvictorOptions(ttl_s=100), clock=scene.clock, announcer=announcer
    ).run_once()
    ((name, events),) = listener.messages(1)
    assert name.startswith(f"kv@{block(1).partition('/')[0]}@tiny".encode())
    assert events[0]["block_hashes"] == [number_of(1)]
    assert announcer.unread_files == 1
