import errno
from pathlib import Path

import numpy as np
import pytest

from kvtier.blocks.checksum import Checksum, HmacSha256, Xxh3
from kvtier.blocks.key import BlockKey
from kvtier.evictor.layouts import StoreTree
from kvtier.evictor.scan import HeaderCheck
from kvtier.testing.memory_store import MemoryStore
from kvtier.testing.samples import sample_space
from kvtier.tiers.shared.format import Segment, encode_header, segment_name
from kvtier.tiers.shared.manifest import ensure_manifest
from tests.evictor.scenes import Between, Scene, key_of

SPACE = sample_space()
SECRET = bytes(range(32))


def publish(store: MemoryStore, number: int, checksum: Checksum, blocks: int = 2) -> str:
    """A segment of a few blocks; its name below the store."""
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


def checked(scene: Scene, name: str, **options: object) -> tuple[bool, list[str]]:
    tree = StoreTree(name.partition("/")[0], is_foreign=False)
    context = scene.context(**options)
    passes = HeaderCheck(context, tree).passes("0", tree.pack(name), name)
    assert context.report.broken_files == len(context.report.broken)
    return passes, context.report.broken


@pytest.mark.parametrize("blocks", [1, 2, 400])
def test_a_sound_one_passes(blocks: int) -> None:
    scene = Scene()
    name = publish(scene.store, 1, Xxh3(), blocks)
    assert checked(scene, name, sweep_broken=True) == (True, [])


def test_a_broken_one_is_counted_and_moved_only_where_asked() -> None:
    scene = Scene()
    name = publish(scene.store, 1, Xxh3())
    scene.store.raw(name)[150] ^= 1
    passes, reasons = checked(scene, name)
    assert passes
    assert "checksum differs" in reasons[0]
    assert checked(scene, name, sweep_broken=True, dry_run=True)[0] is False
    assert name in scene.names()
    assert checked(scene, name, sweep_broken=True)[0] is False
    assert name not in scene.names()
    assert len([one for one in scene.names() if "/quarantine/" in one]) == 1


def test_a_wrong_length_is_broken() -> None:
    scene = Scene()
    name = publish(scene.store, 1, Xxh3())
    scene.store.put(name, scene.store.raw(name).tobytes() + b"x")
    assert "too long" in checked(scene, name)[1][0]


def test_one_that_cannot_be_read_is_left() -> None:
    scene = Scene()
    name = publish(scene.store, 1, Xxh3())

    class Refusing(Between):
        def before(self, verb: str, name: str) -> None:
            if verb == "read" and name.endswith(".kvt"):
                raise OSError(errno.EIO, "no")

    tree = StoreTree(name.partition("/")[0], is_foreign=False)
    context = scene.context(Refusing(scene.store), sweep_broken=True)
    assert HeaderCheck(context, tree).passes("0", tree.pack(name), name)
    assert (context.report.broken_files, context.report.refused_calls) == (0, 1)


def test_one_that_vanished_is_not_broken() -> None:
    scene = Scene()
    name = publish(scene.store, 1, Xxh3())
    scene.store.remove(name)
    assert checked(scene, name) == (True, [])


def test_without_the_secret_nothing_is_judged(tmp_path: Path) -> None:
    scene = Scene()
    name = publish(scene.store, 1, HmacSha256(SECRET))
    scene.store.raw(name)[150] ^= 1
    assert checked(scene, name) == (True, [])
    secret = tmp_path / "key"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    assert "checksum differs" in checked(scene, name, key_file=secret)[1][0]


def test_without_a_manifest_nothing_is_judged() -> None:
    scene = Scene()
    name = publish(scene.store, 1, Xxh3())
    scene.store.raw(name)[150] ^= 1
    scene.store.put(f"{name.partition('/')[0]}/manifest.json", b"{]")
    assert checked(scene, name) == (True, [])
    scene.store.remove(f"{name.partition('/')[0]}/manifest.json")
    assert checked(scene, name) == (True, [])
