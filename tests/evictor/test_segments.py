import pytest

from kvtier.blocks.checksum import Xxh3
from kvtier.errors import Corrupt
from kvtier.evictor.layouts import StoreTree
from kvtier.evictor.segments import open_segment_reader
from tests.evictor.scenes import FOREIGN, Scene, key_of, publish_segment


@pytest.mark.parametrize("blocks", [1, 400])
def test_reader_returns_all_blocks_of_long_header(blocks: int) -> None:
    scene = Scene()
    name = publish_segment(scene.store, 1, Xxh3(), blocks)
    tree = StoreTree(name.partition("/")[0], is_foreign=False)
    segments = open_segment_reader(scene.store, tree, None)
    assert segments is not None
    found = segments.read(key_of(1), name)
    assert found is not None
    assert list(found.keys) == [key_of(1 + 1000 * each) for each in range(blocks)]
    scene.store.raw(name)[12] ^= 1
    with pytest.raises(Corrupt):
        segments.read(key_of(1), name)
    scene.store.remove(name)
    assert segments.read(key_of(1), name) is None


def test_reader_requires_manifest() -> None:
    scene = Scene()
    assert (
        open_segment_reader(scene.store, StoreTree("a-0123456789abcdef", is_foreign=False), None)
        is None
    )
    assert open_segment_reader(scene.store, StoreTree(FOREIGN, is_foreign=True), None) is None
