"""The key space of an engine: everything that its KV bytes depend on beyond the block hashes.

The engine's offloading configuration has the sizes, names and parallelism. Revision, load
format, overrides and the hash algorithm are only in its full configuration, which is not passed
to a spec; `engine_config` finds it.

Two checkpoints of one name must not share KV blocks, and hashing 100 GB at each start takes too
long. The digest of the weights therefore covers the whole `config.json`, and of each weight file
its name, its size and samples of its bytes: both ends and evenly spaced pieces. Files in the
Hugging Face cache are named by the hash of their content and need not be read. The digest misses
a file that is edited in place between the samples without changing its size.
"""

import hashlib
import inspect
import logging
import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kvtier import clock
from kvtier.blocks.key import GroupShape, KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.connectors.vllm import versions
from kvtier.connectors.vllm.arrangement import Arrangement

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_offload.config import OffloadingConfig

_log = logging.getLogger(__name__)

UNKNOWN = "unknown"

SAMPLED_BYTES = 64 * 1024**2
"""Bound on the bytes read from all files: 0.1 s from the page cache, 0.3 s from a cold NVMe."""
EDGE_BYTES = 1024**2
PIECE_BYTES = 64 * 1024
PIECES = 16

NO_WEIGHTS = "dummy"
"""Digest of weights without files, which the engine generates from the configuration."""

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONTENT_NAME = re.compile(r"[0-9a-f]{64}")

# The engine's settings that change KV bytes of equal weights: (section, name).
_BYTE_SETTINGS = (
    ("model_config", "dtype"),
    ("model_config", "quantization"),
    ("model_config", "hf_overrides"),
    ("load_config", "load_format"),
    ("load_config", "model_loader_extra_config"),
    ("cache_config", "mamba_cache_dtype"),
    ("cache_config", "mamba_ssm_cache_dtype"),
    ("cache_config", "mamba_cache_mode"),
    ("attention_config", "backend"),
)
_INSTRUCTION_SETS = (("amx", "amx_tile"), ("avx512", "avx512f"), ("avx2", "avx2"))


class Checkpoint(NamedTuple):
    """A model on disk."""

    name: str
    revision: str
    folder: Path | None
    """The folder or the single weight file; None if it was not found."""


def key_space(
    config: "OffloadingConfig",
    layout: BlockLayout,
    arrangement: Arrangement,
    engine: "VllmConfig | None" = None,
) -> KeySpace:
    """Return the key space of this engine. Reads up to 64 MiB of weights, which takes up to 0.3 s.

    Canonical blocks are not divided among ranks, so the key space has size 1 for all kinds of
    parallelism and is the same on any tensor-parallel size.

    `engine` is the engine's full configuration. If it is not given, it is searched for, which
    works while the engine constructs its connector. Raises InvalidSettings for an unsupported
    engine version.
    """
    engine = engine or engine_config()
    release = versions.supported(versions.installed())
    if engine is None:
        _log.warning("kvtier: the engine's configuration was not found; see `kvtier doctor`")
    checkpoint = find_checkpoint(
        config.model.name, _setting(engine, "model_config", "revision"), _hub_cache(engine)
    )
    algorithm = _setting(engine, "cache_config", "prefix_caching_hash_algo") or UNKNOWN
    parallel = config.parallel
    family = config.kv_cache_layout or UNKNOWN
    if arrangement.is_canonical:
        sizes = dict.fromkeys(("world_size", "tp_size", "pp_size"), 1)
        kept_as = f"{family} canonical"
    else:
        sizes = {name: getattr(parallel, name) for name in ("world_size", "tp_size", "pp_size")}
        kept_as = f"{family} direct pcp{parallel.pcp_size} dcp{parallel.dcp_size}"
    return KeySpace(
        engine=f"vllm {release[0]}.{release[1]}",
        model=checkpoint.name,
        revision=checkpoint.revision,
        weights=f"{_weights(checkpoint, engine)} {_settings_digest(engine)}",
        dtype=config.model.dtype,
        layout=kept_as,
        block_bytes=layout.block_bytes,
        blocks_per_chunk=config.cache.blocks_per_chunk,
        tokens_per_hash=config.cache.tokens_per_hash,
        groups=tuple(
            GroupShape(tokens_per_block=group.tokens_per_block, layers=_digest(group.layer_names))
            for group in config.groups
        ),
        **sizes,
        hash_algorithm=algorithm,
        hash_seed=hash_seed(algorithm),
        isa=isa(),
    )


def engine_config() -> "VllmConfig | None":
    """Return the engine's full configuration, or None if no caller has it.

    The engine makes it available globally in its workers but not in its scheduler. There, the
    connector that constructs the spec has it as a local variable.
    """
    from vllm.config import VllmConfig, get_current_vllm_config_or_none

    current = get_current_vllm_config_or_none()
    frame = inspect.currentframe()
    while current is None and frame is not None:
        held = frame.f_locals.get("vllm_config")
        current = held if isinstance(held, VllmConfig) else None
        frame = frame.f_back
    return current


def hash_seed(algorithm: str) -> str:
    """Return the seed of the block hashes; unique if the engine draws it at random."""
    seed = os.environ.get("PYTHONHASHSEED")
    if seed is not None:
        return f"PYTHONHASHSEED={seed}"
    return f"random {clock.unique_id()}" if algorithm.startswith("xxhash") else "default"


def isa() -> str:
    """Return the instruction set that blocks are packed for on CPUs, else the device's type."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        capability = current_platform.get_device_capability()
        return f"{current_platform.device_type} {capability.as_version_str() if capability else ''}"
    return f"cpu {platform.machine()} {instruction_set(Path('/proc/cpuinfo').read_text())}"


def instruction_set(cpuinfo: str) -> str:
    """Return the widest instruction set that the engine uses, from the text of /proc/cpuinfo."""
    flags = next(
        (set(line.split()) for line in cpuinfo.splitlines() if line.startswith("flags")), set()
    )
    return next((name for name, flag in _INSTRUCTION_SETS if flag in flags), "plain")


def _weights(checkpoint: Checkpoint, engine: "VllmConfig | None") -> str:
    if _setting(engine, "load_config", "load_format") == "dummy":
        return NO_WEIGHTS
    if checkpoint.folder is None:
        return UNKNOWN
    return weights_digest(checkpoint.folder)


def _hub_cache(engine: "VllmConfig | None") -> Path:
    chosen = _setting(engine, "load_config", "download_dir")
    if chosen:
        return Path(chosen)
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _settings_digest(engine: "VllmConfig | None") -> str:
    if engine is None:
        return UNKNOWN
    values = [
        f"{name}={_stable_text(_setting(engine, section, name))}"
        for section, name in _BYTE_SETTINGS
    ]
    return _digest([*values, _shape(engine)])


def _shape(engine: "VllmConfig") -> str:
    """Return the model's own configuration, on which generated weights depend."""
    to_dict = getattr(getattr(engine.model_config, "hf_config", None), "to_dict", dict)
    # Private entries hold paths, which differ between hosts.
    ignored = {"transformers_version"}
    return _stable_text({k: v for k, v in to_dict().items() if k[0] != "_" and k not in ignored})


def _setting(engine: "VllmConfig | None", section: str, name: str) -> Any:
    return getattr(getattr(engine, section, None), name, None)


def _stable_text(value: object) -> str:
    """Return a text that is equal in every process, without addresses or dictionary order."""
    if isinstance(value, dict):
        return str(sorted((str(key), _stable_text(inner)) for key, inner in value.items()))
    return getattr(value, "__qualname__", None) or str(value)


def _digest(texts: "tuple[str, ...] | list[str]") -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def find_checkpoint(model: str, revision: str | None, cache: Path) -> Checkpoint:
    """Resolve a path, or a hub name through the hub's local `cache`, without network access.

    The resulting name contains no machine-specific cache paths, so that hosts agree on it.
    """
    path = Path(model)
    if path.exists():
        folder = path if path.is_dir() else path.parent
        if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
            repository = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
            return Checkpoint(repository, folder.name, folder)
        return Checkpoint(model, revision or "local", path)
    repository_folder = cache / f"models--{model.replace('/', '--')}"
    commit = _commit(repository_folder, revision or "main")
    if commit is not None:
        return Checkpoint(model, commit, repository_folder / "snapshots" / commit)
    return Checkpoint(model, revision or "unresolved", None)


def weights_digest(folder: Path) -> str:
    """Return 64 hex digits over the configuration and samples of the weights, or NO_WEIGHTS.

    `folder` may also be a single weight file. Raises OSError if the files cannot be read.
    """
    weights = list(_weight_files(folder))
    if not weights:
        return NO_WEIGHTS
    hashed = hashlib.sha256()
    config = (folder if folder.is_dir() else folder.parent) / "config.json"
    if config.exists():
        hashed.update(config.read_bytes())
    budget_bytes = SAMPLED_BYTES // len(weights)
    for path in weights:
        content = Path(os.path.realpath(path)).name
        size = path.stat().st_size
        hashed.update(f"\0{path.name}\0{size}\0".encode())
        if path.is_symlink() and _CONTENT_NAME.fullmatch(content):
            hashed.update(content.encode())
        else:
            _sample(path, size, budget_bytes, hashed.update)
    return hashed.hexdigest()


def _commit(repository: Path, revision: str) -> str | None:
    if (repository / "snapshots" / revision).is_dir():
        return revision
    try:
        commit = (repository / "refs" / revision).read_text().strip()
    except OSError:
        return None
    return commit if (repository / "snapshots" / commit).is_dir() else None


def _weight_files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and path.is_file():
            yield path


def _sample(path: Path, size: int, budget_bytes: int, update: Callable[[bytes], None]) -> None:
    """Pass both ends and evenly spaced pieces of a file to `update`, or all of a small file."""
    edge = min(EDGE_BYTES, budget_bytes // 4)
    piece = min(PIECE_BYTES, budget_bytes // 2 // PIECES)
    with path.open("rb", buffering=0) as file:
        if size <= 2 * edge + PIECES * piece:
            update(file.read(size))
            return
        update(file.read(edge))
        inner = size - 2 * edge - piece
        for number in range(PIECES):
            file.seek(edge + inner * number // (PIECES - 1))
            update(file.read(piece))
        file.seek(size - edge)
        update(file.read(edge))
