"""The smallest program that uses kvtier's core: a cache in RAM and on disk, without an engine.

Run it with `.venv/bin/python examples/minimal.py`. An engine does the same through
`kvtier.connectors`. A pattern of bytes stands for the blocks that it copies from its device.
"""

import sys
import tempfile
from pathlib import Path

from kvtier.blocks.key import BlockKey, GroupShape, KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.cache.build import build_cache
from kvtier.clock import MonotonicClock
from kvtier.settings import DiskSettings, RamSettings, Settings

BLOCK_BYTES = 64 * 1024


def main(folder: Path) -> None:
    """Save a prefix of eight blocks, restart the cache, and load the blocks from disk."""
    prefix = [BlockKey(number.to_bytes(36, "big")) for number in range(8)]
    clock = MonotonicClock()

    cache = build_cache(settings(folder), layout(), key_space())
    save = cache.begin_save(prefix, parents=[None, *prefix[:-1]])
    assert save is not None
    for number, slot in enumerate(save.slots):
        cache.arena.view(slot)[:] = number  # the engine copies its block here
    cache.end_save(save)
    cache.close(drain_s=5.0)  # gives the disk time to finish

    cache = build_cache(settings(folder), layout(), key_space())
    print(f"{cache.lookup(prefix)} of {len(prefix)} blocks are on disk after the restart")
    cache.promote("request-1", prefix)
    while (load := cache.begin_load("request-1", prefix)) is None:
        clock.sleep(0.001)
        cache.step(clock.now_s())
    values = [int(cache.arena.view(slot)[0]) for slot in load.slots]
    cache.end_load(load)
    print(f"first bytes of the blocks: {values}")
    cache.close()


def settings(folder: Path) -> Settings:
    """Return settings with 1 MiB of RAM and at most 16 MiB in `folder`, on a real disk."""
    return Settings(
        ram=RamSettings(capacity=16 * BLOCK_BYTES),
        disk=DiskSettings(path=str(folder / "cache"), capacity=16 << 20),
    )


def layout() -> BlockLayout:
    """Return the size of a block and the number of its tokens."""
    return BlockLayout(block_bytes=BLOCK_BYTES, tokens_per_block=16)


def key_space() -> KeySpace:
    """Return all that the bytes depend on besides the tokens; key spaces never mix."""
    return KeySpace(
        engine="example",
        model="my-model",
        revision="1",
        weights="",
        dtype="bfloat16",
        layout="",
        block_bytes=BLOCK_BYTES,
        blocks_per_chunk=1,
        tokens_per_hash=16,
        groups=(GroupShape(tokens_per_block=16, layers=""),),
        world_size=1,
        tp_size=1,
        pp_size=1,
        hash_algorithm="sha256",
        hash_seed="",
        isa="",
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
