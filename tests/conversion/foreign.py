"""Trees as vLLM's `fs` tier and llm-d write them, from known keys, and the matching key space."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from kvtier.blocks.key import BlockKey, GroupShape, KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.conversion.converting import ConversionOptions, convert
from kvtier.conversion.trees import layers_digest
from kvtier.conversion.work import Conversion
from kvtier.inspection.workers import Throttle
from kvtier.testing.samples import sample_space
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.tiers.shared.format import space_folder
from kvtier.tiers.shared.reading import aligned_buffer
from kvtier.tiers.shared.tier import FolderTier

LAYERS = ["model.layers.0.attn", "model.layers.1.attn"]
BLOCK_BYTES = 5000
LAYOUT = BlockLayout(block_bytes=BLOCK_BYTES, tokens_per_block=16)
SLOT_BYTES = LAYOUT.slot_bytes
SPACE = sample_space(
    model="meta/llama",
    layout="NHD direct pcp1 dcp1",
    dtype="bfloat16",
    block_bytes=BLOCK_BYTES,
    groups=(GroupShape(tokens_per_block=16, layers=layers_digest(LAYERS)),),
)
NAME = space_folder(SPACE)


def vllm_fields(**changes: Any) -> dict[str, Any]:
    """Return config.json of vLLM's tier for one worker, whose bytes it takes as agnostic."""
    fields: dict[str, Any] = {
        "model_name": "meta/llama",
        "tokens_per_hash": 16,
        "blocks_per_file": 1,
        "tp_size": 1,
        "pp_size": 1,
        "pcp_size": 1,
        "dcp_size": 1,
        "dtype": "bfloat16",
        "kv_cache_groups": [{"tokens_per_block": 16, "layer_names": LAYERS}],
        "inference_engine": "vllm",
    }
    return {**fields, **changes}


def llmd_fields(**changes: Any) -> dict[str, Any]:
    fields = vllm_fields()
    del fields["tokens_per_hash"], fields["blocks_per_file"]
    fields |= {"hash_block_size": 16, "gpu_blocks_per_file": 1, "dtype": "torch.bfloat16"}
    fields["kv_cache_groups"] = [{"block_size": 16, "layer_names": LAYERS}]
    return {**fields, **changes}


def chain(count: int) -> list[BlockKey]:
    hashes = [hashlib.sha256(str(number).encode()).digest() for number in range(count)]
    return [BlockKey(each + bytes(4)) for each in hashes]


def payload(key: BlockKey, size: int = BLOCK_BYTES) -> bytes:
    return np.random.default_rng(list(key)).bytes(size)


class TreeFolder:
    """A root_dir with one tree."""

    def __init__(self, root: Path, fields: dict[str, Any]) -> None:
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.root = root
        self.base = f"{fields['model_name'].replace('/', '_')}_{digest}"
        self.config = root / self.base / "config.json"
        self.config.parent.mkdir(parents=True)
        self.config.write_text(json.dumps(fields, indent=2, sort_keys=True))

    def file(self, key: BlockKey, rank: int = 0) -> Path:
        digits = key[:-4].hex()
        folder = self.root / f"{self.base}_r{rank}" / digits[:3] / f"{digits[3:5]}_g0"
        return folder / f"{digits}.bin"

    def write(self, key: BlockKey, content: bytes, rank: int = 0) -> Path:
        file = self.file(key, rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def fill(self, keys: list[BlockKey]) -> "TreeFolder":
        """Write files as vLLM does: one for all workers, padded with zeros to a page."""
        for key in keys:
            self.write(key, payload(key).ljust(SLOT_BYTES, b"\0"))
        return self

    def content(self) -> dict[str, bytes]:
        found = sorted(self.root.rglob("*"))
        return {str(p.relative_to(self.root)): p.read_bytes() for p in found if p.is_file()}


def open_tier(folder: Path, space: KeySpace = SPACE, blocks: int = 4, **more: Any) -> FolderTier:
    return FolderTier(folder, LAYOUT, space, segment_blocks=blocks, **more)


def make_space(folder: Path, space: KeySpace = SPACE, **more: Any) -> str:
    """Create the key space, as an engine does when it first runs."""
    open_tier(folder, space, **more).close()
    return space_folder(space)


def quiet(report: Conversion, share: float) -> None:
    del report
    assert 0 <= share <= 1


def run(source: Path, destination: Path, **more: Any) -> Conversion:
    return convert(
        ConversionOptions(str(source), str(destination), **{"space": NAME, **more}),
        Throttle(),
        quiet,
    )


def read(tier: FolderTier, keys: list[BlockKey]) -> None:
    """Assert that an engine finds all keys as one chain, with the right bytes."""
    assert tier.find(keys) == [Outcome.DONE] * len(keys)
    moves = [BlockMove(key, aligned_buffer(SLOT_BYTES)) for key in keys]
    assert tier.read_into(moves) == [Outcome.DONE] * len(keys)
    for key, buffer in moves:
        assert buffer[:BLOCK_BYTES].tobytes() == payload(key)


def fill_store(folder: Path, keys: list[BlockKey], blocks: int = 4, **more: Any) -> None:
    """Write a chain as an engine does: several blocks per file."""
    tier = open_tier(folder, blocks=blocks, **more)
    moves = []
    for key in keys:
        buffer = aligned_buffer(SLOT_BYTES)
        buffer[:BLOCK_BYTES] = np.frombuffer(payload(key), np.uint8)
        moves.append(BlockMove(key, buffer))
    assert set(tier.write_from(moves, [None, *keys[:-1]])) == {Outcome.DONE}
    tier.close()
