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


def test_folders(tmp_path: Path) -> None:
    place = open_store(str(tmp_path))
    found = place.measure()
    assert found is not None
    assert found.total_bytes > 0
    place.store.close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings, match=r"PATH: .* is not a folder"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(InvalidSettings, match=r"PATH: .* does not exist"):
        open_store(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_what_is_no_bucket() -> None:
    with pytest.raises(InvalidSettings, match=r"^PATH: .* is not a bucket"):
        open_store("http://x/y")


def test_a_newer_format_is_refused_and_nothing_else_is() -> None:
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


def test_one_tree_whose_manifest_cannot_be_read_does_not_stop_the_others() -> None:
    scene = Scene()
    tree = StoreTree(ensure_manifest(scene.store, SPACE), is_foreign=False)

    class Refusing(Between):
        def before(self, verb: str, name: str) -> None:
            raise OSError(errno.EACCES, "Permission denied")

    reason = refusal(Refusing(scene.store), tree) or ""
    assert f"{tree.name}/manifest.json cannot be read (Permission denied)" in reason
