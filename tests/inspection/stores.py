"""A store in a folder, with real segments, for tests of inspection."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvtier.blocks.key import BlockKey, KeySpace
from kvtier.testing.samples import sample_space
from kvtier.testing.tiers import key
from kvtier.tiers.base import Outcome
from kvtier.tiers.shared.format import segment_name, space_folder
from kvtier.tiers.shared.tier import FolderTier
from tests.tiers.shared.segments import LAYOUT, flip, keys, read, write

BLOCK_BYTES = LAYOUT.block_bytes
SPACE = sample_space(block_bytes=BLOCK_BYTES)
NAME = space_folder(SPACE)
SECRET = b"5" * 64


class StoreFolder:
    """A shared folder that tests fill and damage."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(
        self,
        blocks: Sequence[BlockKey],
        space: KeySpace = SPACE,
        parent: BlockKey | None = None,
        segment_blocks: int = 4,
        key_file: Path | None = None,
        reads: int = 0,
    ) -> str:
        """Write a chain, have `reads` engines read it, and return the key space's folder."""
        tier = self._open(space, segment_blocks, key_file)
        assert write(tier, list(blocks), parent) == [Outcome.DONE] * len(blocks)
        tier.close()
        for _ in range(reads):
            tier = self._open(space, segment_blocks, key_file)
            assert read(tier, list(blocks)) == [Outcome.DONE] * len(blocks)
            tier.close()
        return space_folder(space)

    def _open(self, space: KeySpace, segment_blocks: int, key_file: Path | None) -> FolderTier:
        return FolderTier(
            self.path, LAYOUT, space, segment_blocks=segment_blocks, key_file=key_file
        )

    def file(self, block: BlockKey, space: KeySpace = SPACE) -> Path:
        """Return the file of the segment that begins with `block`."""
        return self.path / self.name(block, space)

    def name(self, block: BlockKey, space: KeySpace = SPACE) -> str:
        return f"{space_folder(space)}/{segment_name(block)}"

    def plant(self, name: str, content: bytes = b"?") -> Path:
        """Create any other file, and return its path."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def plant_tree(self, fields: dict[str, Any], ranks: int = 1, files: int = 3) -> str:
        """Create a tree as vLLM and llm-d do, and return its base name."""
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        base = f"{fields['model_name'].replace('/', '_')}_{digest}"
        self.plant(f"{base}/config.json", json.dumps(fields).encode())
        for rank in range(ranks):
            for number in range(files):
                name = hashlib.sha256(str(number).encode()).hexdigest()
                self.plant(f"{base}_r{rank}/{name[:3]}/{name[3:5]}_g0/{name}.bin", b"x" * 100)
        return base


def spread(count: int) -> list[BlockKey]:
    """Return keys whose segments are in separate folders, in the order of their names."""
    return [key(number << 20) for number in range(count)]


def key_file(folder: Path, secret: bytes = SECRET) -> Path:
    file = folder / "secret"
    file.write_bytes(secret)
    file.chmod(0o600)
    return file


__all__ = ["BLOCK_BYTES", "NAME", "SPACE", "StoreFolder", "flip", "key_file", "keys", "spread"]
