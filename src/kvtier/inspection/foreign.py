"""Trees of other systems beside a store: of vLLM's `fs` tier and of llm-d.

`<model>_<12 hex digits>/config.json` describes the files in `<model>_<12 hex digits>_r<rank>/
<hhh>/<hh>_g<group>/<hash>.bin`. The files are bare tensors without headers or checksums, so they
can be counted but not verified.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from kvtier.inspection.survey import FileTally, ForeignTree
from kvtier.inspection.view import View, printable

UNVERIFIABLE: Final = "its files carry no checksums and cannot be verified"
_TOP = re.compile(r"(?P<base>.+_(?P<digest>[0-9a-f]{12}))(?:_r(?P<rank>\d+))?")
_FAN_OUT = re.compile(r"[0-9a-f]{3}")
_GROUP = re.compile(r"[0-9a-f]{2}_g(\d+)")
_BLOCK = re.compile(r"[0-9a-f]+\.bin")
_CONFIG = "config.json"
_CONFIG_BYTES_MAX = 1 << 20


def find_foreign(view: View) -> dict[str, list[str]]:
    """Return the trees: base name -> its top-level folders. Raises OSError."""
    found: dict[str, list[str]] = {}
    for entry in view.entries():
        matched = _TOP.fullmatch(entry.name) if entry.is_folder else None
        if matched is not None and _is_tree(view, entry.name, is_rank=matched["rank"] is not None):
            found.setdefault(matched["base"], []).append(entry.name)
    return dict(sorted(found.items()))


def survey_tree(
    view: View,
    base: str,
    tops: Sequence[str],
    on_unreadable: Callable[[str, OSError], None],
    on_file: Callable[[str], None],
) -> ForeignTree:
    """Count the files of a tree, with one system call per file.

    `on_file` is called with the name of each file, `on_unreadable` as in `View.walk`.
    """
    files, others = FileTally(), 0
    groups: set[int] = set()
    for top in tops:
        for entry in view.walk(top, _looks_into, on_unreadable):
            on_file(entry.name)
            parts = entry.name.split("/")
            group = _GROUP.fullmatch(parts[2]) if len(parts) == 4 else None
            if group and entry.is_file and _BLOCK.fullmatch(parts[3]):
                groups.add(int(group[1]))
                files.add(entry)
            elif entry.name != f"{base}/{_CONFIG}":
                others += 1
    config, mistake = read_config(view, base)
    ranks = [found["rank"] for top in tops if (found := _TOP.fullmatch(top))]
    return ForeignTree(
        name=printable(base),
        system=_system(config),
        config=config,
        mistake=mistake,
        ranks=sorted(int(rank) for rank in ranks if rank is not None),
        groups=sorted(groups),
        files=files.totals(),
        others=others,
    )


def read_config(view: View, base: str) -> tuple[dict[str, Any] | None, str | None]:
    """Return the fields of a tree's config.json, and what is wrong with it; never raises."""
    try:
        raw = view.read(f"{base}/{_CONFIG}", _CONFIG_BYTES_MAX)
    except OSError as error:
        return None, f"{_CONFIG} cannot be read: {error.strerror}"
    if raw is None:
        return None, f"{_CONFIG} is missing"
    try:
        config = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return None, f"{_CONFIG} cannot be read: {error}"
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(text.encode()).hexdigest()[:12] != base[-12:]:
        return (
            config,
            f"{_CONFIG} does not match the folder's name: it was changed or is damaged",
        )
    return config, None


def _is_tree(view: View, name: str, *, is_rank: bool) -> bool:
    try:
        below = (entry.name.rpartition("/")[2] for entry in view.entries(name))
        return any(map(_FAN_OUT.fullmatch, below)) if is_rank else _CONFIG in below
    except OSError:
        return is_rank


def _looks_into(name: str) -> bool:
    _, *below = name.split("/")
    patterns = (_FAN_OUT, _GROUP)
    return len(below) <= len(patterns) and all(
        pattern.fullmatch(part) for pattern, part in zip(patterns, below, strict=False)
    )


def _system(config: dict[str, Any] | None) -> str:
    if config is not None and "gpu_blocks_per_file" in config:
        return "llm-d FS"
    if config is not None and "blocks_per_file" in config:
        return "vLLM fs"
    return "vLLM fs or llm-d FS"
