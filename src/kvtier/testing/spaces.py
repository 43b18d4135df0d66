"""Key spaces for tests: one sample, and what differs from it."""

from typing import Any

from kvtier.blocks.key import GroupShape, KeySpace


def sample_space(**fields: Any) -> KeySpace:
    """The key space of a small model; `fields` replace its own."""
    sample: dict[str, Any] = {
        "engine": "vllm 0.32.0",
        "model": "tiny",
        "revision": "main",
        "weights": "ab12",
        "dtype": "float32",
        "layout": "NHD",
        "block_bytes": 4096,
        "blocks_per_chunk": 1,
        "tokens_per_hash": 16,
        "groups": (GroupShape(tokens_per_block=16, layers="cd34"),),
        "world_size": 1,
        "tp_size": 1,
        "pp_size": 1,
        "hash_algorithm": "sha256",
        "hash_seed": "0",
        "isa": "avx512",
    }
    return KeySpace(**{**sample, **fields})
