import errno
from pathlib import Path

import pytest

from kvtier.blocks.checksum import HmacSha256, Xxh3
from kvtier.evictor.layouts import StoreTree
from kvtier.evictor.scan import HeaderCheck
from tests.evictor.scenes import SECRET, Between, Scene, publish_segment


def checked(scene: Scene, name: str, **options: object) -> tuple[bool, list[str]]:
    tree = StoreTree(name.partition("/")[0], is_foreign=False)
    context = scene.context(**options)
    passes = HeaderCheck(context, tree).passes("0", tree.pack(name), name)
    assert context.report.broken_files == len(context.report.broken)
    return passes, context.report.broken


@pytest.mark.parametrize("blocks", [1, 2, 400])
def test_valid_header_passes(blocks: int) -> None:
    scene = Scene()
    name = publish_segment(scene.store, 1, Xxh3(), blocks)
    assert checked(scene, name, sweep_broken=True) == (True, [])


def test_broken_header_is_counted_and_quarantined_on_request() -> None:
    scene = Scene()
    name = publish_segment(scene.store, 1, Xxh3())
    scene.store.raw(name)[150] ^= 1
    passes, reasons = checked(scene, name)
    assert passes
    assert "checksum differs" in reasons[0]
    assert checked(scene, name, sweep_broken=True, dry_run=True)[0] is False
    assert name in scene.names()
    assert checked(scene, name, sweep_broken=True)[0] is False
    assert name not in scene.names()
    assert len([one for one in scene.names() if "/quarantine/" in one]) == 1


def test_segment_of_wrong_length_is_broken() -> None:
    scene = Scene()
    name = publish_segment(scene.store, 1, Xxh3())
    scene.store.put(name, scene.store.raw(name).tobytes() + b"x")
    assert "too long" in checked(scene, name)[1][0]


def test_unreadable_segment_stays() -> None:
    scene = Scene()
    name = publish_segment(scene.store, 1, Xxh3())

    class Refusing(Between):
        def before(self, verb: str, name: str) -> None:
            if verb == "read" and name.endswith(".kvt"):
                raise OSError(errno.EIO, "no")

    tree = StoreTree(name.partition("/")[0], is_foreign=False)
    context = scene.context(Refusing(scene.store), sweep_broken=True)
    assert HeaderCheck(context, tree).passes("0", tree.pack(name), name)
    assert (context.report.broken_files, context.report.refused_calls) == (0, 1)


def test_missing_segment_is_not_broken() -> None:
    scene = Scene()
    name = publish_segment(scene.store, 1, Xxh3())
    scene.store.remove(name)
    assert checked(scene, name) == (True, [])


def test_headers_are_not_checked_without_secret(tmp_path: Path) -> None:
    scene = Scene()
    name = publish_segment(scene.store, 1, HmacSha256(SECRET))
    scene.store.raw(name)[150] ^= 1
    assert checked(scene, name) == (True, [])
    secret = tmp_path / "key"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    assert "checksum differs" in checked(scene, name, key_file=secret)[1][0]


def test_headers_are_not_checked_without_manifest() -> None:
    scene = Scene()
    name = publish_segment(scene.store, 1, Xxh3())
    scene.store.raw(name)[150] ^= 1
    scene.store.put(f"{name.partition('/')[0]}/manifest.json", b"{]")
    assert checked(scene, name) == (True, [])
    scene.store.remove(f"{name.partition('/')[0]}/manifest.json")
    assert checked(scene, name) == (True, [])
