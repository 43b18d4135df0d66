"""The one settings tree: every setting kvtier has, its default, and what it means.

Why it exists: YAML keys, `KVTIER_` variables, flags, `kvtier config show` and the reference
are all derived from these classes, so that no two of them can disagree. The tree holds data,
never objects. Sizes are bytes and durations are seconds here; human text is understood at
the edge, in `layers`.
"""

import enum
from typing import Annotated, Literal

import msgspec


class Kind(enum.Enum):
    """How the text of a setting is read."""

    SIZE = "size"
    DURATION = "duration"
    COUNT = "count"
    FOLDER = "folder"
    CHOICE = "choice"
    EVICTION = "eviction"
    ADMISSION = "admission"


class About(msgspec.Struct, frozen=True):
    """What a person needs to know of a setting. `minimum` bounds counts and durations."""

    kind: Kind
    text: str
    example: str
    minimum: float = 0


_EVICTION = "Which block leaves when the tier is full; the name of a module in `kvtier.eviction`."
_ADMISSION = "Which blocks may enter the tier; the name of a module in `kvtier.admission`."


class Ram(msgspec.Struct, frozen=True, kw_only=True):
    """The host-memory tier: every block passes through it. In short: `ram: 64GiB`."""

    capacity: Annotated[
        int, About(Kind.SIZE, "Host memory for blocks, taken at start and never exceeded.", "64GiB")
    ]
    eviction: Annotated[str, About(Kind.EVICTION, _EVICTION, "arc")] = "lru"
    admission: Annotated[str, About(Kind.ADMISSION, _ADMISSION, "second_touch")] = "always"


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """The local-disk tier, which survives restarts. In short: `disk: /mnt/nvme/kvtier=500GiB`."""

    path: Annotated[
        str,
        About(
            Kind.FOLDER,
            "Folder of this node's slab, created with mode 0700; one engine at a time uses it.",
            "/mnt/nvme/kvtier",
        ),
    ]
    capacity: Annotated[
        int,
        About(
            Kind.SIZE,
            "Physical bound of the folder per node: blocks, log and checkpoint together.",
            "500GiB",
        ),
    ]
    eviction: Annotated[str, About(Kind.EVICTION, _EVICTION, "sieve")] = "lru"
    admission: Annotated[str, About(Kind.ADMISSION, _ADMISSION, "second_touch")] = "always"
    io_threads: Annotated[
        int, About(Kind.COUNT, "Threads that read and write the slab.", "8", minimum=1)
    ] = 4
    direct_io: Annotated[
        Literal["auto", "always", "never"],
        About(
            Kind.CHOICE,
            "Bypass the page cache: where the file system allows it, always (an error where it "
            "cannot), or never.",
            "always",
        ),
    ] = "auto"
    on_mismatch: Annotated[
        Literal["refuse", "replace"],
        About(
            Kind.CHOICE,
            "What to do with a slab of another model or version: stop with an error, or delete "
            "it and start empty.",
            "replace",
        ),
    ] = "refuse"


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """Moving blocks between tiers, on threads beside the engine."""

    promote_deadline: Annotated[
        float,
        About(
            Kind.DURATION,
            "How long a request may wait for blocks from a lower tier before they count as a "
            "miss and are computed.",
            "500ms",
            minimum=0.001,
        ),
    ] = 5.0
    queue_blocks: Annotated[
        int,
        About(
            Kind.COUNT,
            "Blocks that may wait in each direction; beyond it demotions are dropped.",
            "1024",
            minimum=1,
        ),
    ] = 4096
    drain: Annotated[
        float,
        About(Kind.DURATION, "How long a stopping engine waits for writes that are queued.", "10s"),
    ] = 2.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything. `ram.capacity` is the only setting without a default."""

    ram: Ram
    disk: Disk | None = None
    transfer: Transfer = Transfer()
