"""Reads the environment variables of llm-d's PVC evictor.

A deployment of that evictor runs `kvtier evict` once its image and command are changed. Thresholds
are percentages of the file system in both. Invariant: each variable is read, or is an error, or
tunes a part that kvtier does not have and is listed in `ignored`.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

import msgspec

from kvtier.errors import InvalidSettings

MOUNT: Final = "PVC_MOUNT_PATH"
"""The variables are read if this one is set and the command has no path."""

EVENTS: Final = "STORAGE_EVENTS_ENDPOINT"

_WITHOUT_COUNTERPART: Final = (
    "NUM_CRAWLER_PROCESSES",
    "FILE_QUEUE_MAXSIZE",
    "FILE_QUEUE_MIN_SIZE",
    "DELETION_BATCH_SIZE",
    "LOGGER_INTERVAL_SECONDS",
    "DIR_CLEANUP_TTL_SECONDS",
    "TOTAL_SHARDS",
    "SHARD_INDEX",
)
"""Variables that tune processes, queues and batches. kvtier's evictors divide work by leases."""
_HIGH: Final = ("CLEANUP_THRESHOLD", "85")
_LOW: Final = ("TARGET_THRESHOLD", "70")
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
_NUMBER = re.compile(r"\d{1,12}(\.\d{1,9})?")
_TRUE: Final = ("true", "1", "yes")
_FALSE: Final = ("false", "0", "no", "")


class PvcEvictor(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of llm-d's evictor in terms of `kvtier evict`."""

    path: str
    high: str
    """A percentage of the file system: `85%`."""
    low: str
    grace_s: float
    dry_run: bool
    sweep_folders: bool
    log_level: str
    log_file: str | None
    events: str | None
    """The endpoint at which events about removed blocks are published."""
    ignored: tuple[str, ...]
    """Variables that are set and have no effect."""


def read(env: Mapping[str, str]) -> PvcEvictor | None:
    """Read the variables; return None if `PVC_MOUNT_PATH` is not set.

    Raises InvalidSettings naming the variable.
    """
    if MOUNT not in env:
        return None
    folder = env.get("CACHE_DIRECTORY", "kv/model-cache/models").strip("/")
    if ".." in PurePosixPath(folder).parts:
        raise InvalidSettings(f"CACHE_DIRECTORY: {folder!r} leads out of {MOUNT}; leave out `..`")
    high, low = (_number(env, *one) for one in (_HIGH, _LOW))
    if float(low) >= float(high):
        raise InvalidSettings(
            f"{_LOW[0]}: {low} is not below {_HIGH[0]} {high}; files are deleted above the latter "
            "until the former is reached, so swap them"
        )
    if float(high) > 100:
        raise InvalidSettings(f"{_HIGH[0]}: {high} is more than 100 percent; write {_HIGH[1]}")
    level = env.get("LOG_LEVEL", "INFO").upper()
    if level not in _LEVELS:
        raise InvalidSettings(f"LOG_LEVEL: {level!r}; write one of {', '.join(_LEVELS)}")
    return PvcEvictor(
        path=str(PurePosixPath(env[MOUNT]) / folder),
        high=f"{high}%",
        low=f"{low}%",
        grace_s=60 * float(_number(env, "FILE_ACCESS_TIME_THRESHOLD_MINUTES", "60")),
        dry_run=_flag(env, "DRY_RUN", "false"),
        sweep_folders=_flag(env, "ENABLE_DIR_CLEANUP", "true"),
        log_level=level,
        log_file=env.get("LOG_FILE_PATH") or None,
        events=env.get(EVENTS) or None,
        ignored=tuple(name for name in _WITHOUT_COUNTERPART if name in env),
    )


def _number(env: Mapping[str, str], name: str, default: str) -> str:
    text = env.get(name, default).strip()
    if not _NUMBER.fullmatch(text):
        raise InvalidSettings(f"{name}: {text!r} is not a number; write for example {default}")
    return text


def _flag(env: Mapping[str, str], name: str, default: str) -> bool:
    text = env.get(name, default).strip().lower()
    if text not in (*_TRUE, *_FALSE):
        raise InvalidSettings(f"{name}: {text!r} is neither true nor false")
    return text in _TRUE
