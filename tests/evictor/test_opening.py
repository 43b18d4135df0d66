import errno
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.evictor.layouts import StoreTree
from kvtier.evictor.opening import open_store, refusal
from kvtier.testing.samples import sample_space
from kvtier.tiers.shared.manifest import ensure_manifest
from tests.evictor.scenes import FOREIGN, Between, Scene

SPACE = sample_space()


def test_open_store_requires_existing_folder(tmp_path: Path) -> None:
    opened = open_store(str(tmp_path))
    found = opened.measure()
    assert found is not None
    assert found.total_bytes > 0
    opened.store.close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings, match=r"PATH: .* is not a folder"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(InvalidSettings, match=r"PATH: .* does not exist"):
        open_store(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_open_store_rejects_invalid_bucket_url() -> None:
    with pytest.raises(InvalidSettings, match=r"^PATH: .* is not a bucket"):
        open_store("http://x/y")


def test_refusal_of_newer_format_only() -> None:
    scene = Scene()
    tree = StoreTree(ensure_manifest(scene.store, SPACE), is_foreign=False)
    manifest = f"{tree.name}/manifest.json"
    assert refusal(scene.store, tree) is None
    scene.store.put(manifest, b'{"format": 2}')
    assert f"{manifest} is of format 2" in (refusal(scene.store, tree) or "")
    scene.store.put(manifest, b"\xff{]")
    assert refusal(scene.store, tree) is None
    scene.store.remove(manifest)
    assert refusal(scene.store, tree) is None
    assert refusal(scene.store, StoreTree(FOREIGN, is_foreign=True)) is None


def test_refusal_of_unreadable_manifest_does_not_raise() -> None:
    scene = Scene()
    tree = StoreTree(ensure_manifest(scene.store, SPACE), is_foreign=False)

    class Refusing(Between):
        def before(self, verb: str, name: str) -> None:
            raise OSError(errno.EACCES, "Permission denied")

    reason = refusal(Refusing(scene.store), tree) or ""
    assert f"{tree.name}/manifest.json cannot be read (Permission denied)" in reason
