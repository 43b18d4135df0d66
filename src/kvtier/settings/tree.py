"""The one settings tree: every setting kvtier has, its default, and what it means.

Why it exists: YAML keys, `KVTIER_` variables, flags, `kvtier config show` and the reference
are all derived from these classes, so that no two of them can disagree. The tree holds data,
never objects. Sizes are bytes and durations are seconds here; human text is understood at
the edge, in `layers`.
"""

import enum
from typing import Annotated, Literal, TypeAlias

import msgspec


class SettingKind(enum.Enum):
    """How the text of a setting is read."""

    SIZE = "size"
    DURATION = "duration"
    COUNT = "count"
    FOLDER = "folder"
    FILE = "file"
    """Or `none`."""
    URL = "url"
    CHOICE = "choice"
    EVICTION = "eviction"
    ADMISSION = "admission"


class About(msgspec.Struct, frozen=True):
    """What a person needs to know of a setting. `minimum` bounds counts and durations."""

    kind: SettingKind
    text: str
    example: str
    minimum: float = 0


# Settings that more than one tier has: said once, here.
_EVICTION = "Which block leaves when the tier is full; the name of a module in `kvtier.eviction`."
_ADMISSION = "Which blocks may enter the tier; the name of a module in `kvtier.admission`."
_Admission: TypeAlias = Annotated[str, About(SettingKind.ADMISSION, _ADMISSION, "second_touch")]


class RamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The host-memory tier: every block passes through it. In short: `ram: 64GiB`."""

    capacity: Annotated[
        int,
        About(
            SettingKind.SIZE, "Host memory for blocks, taken at start and never exceeded.", "64GiB"
        ),
    ]
    eviction: Annotated[str, About(SettingKind.EVICTION, _EVICTION, "arc")] = "lru"
    admission: _Admission = "always"


class DiskSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The local-disk tier, which survives restarts. In short: `disk: /mnt/nvme/kvtier=500GiB`."""

    path: Annotated[
        str,
        About(
            SettingKind.FOLDER,
            "Folder of this node's slab, created with mode 0700; one engine at a time uses it.",
            "/mnt/nvme/kvtier",
        ),
    ]
    capacity: Annotated[
        int,
        About(
            SettingKind.SIZE,
            "Physical bound of the folder per node: blocks, log and checkpoint together.",
            "500GiB",
        ),
    ]
    eviction: Annotated[str, About(SettingKind.EVICTION, _EVICTION, "sieve")] = "lru"
    admission: _Admission = "always"
    io_threads: Annotated[
        int, About(SettingKind.COUNT, "Threads that read and write the slab.", "8", minimum=1)
    ] = 4
    direct_io: Annotated[
        Literal["auto", "always", "never"],
        About(
            SettingKind.CHOICE,
            "Bypass the page cache: where the file system allows it, always (an error where it "
            "cannot), or never.",
            "always",
        ),
    ] = "auto"
    on_mismatch: Annotated[
        Literal["refuse", "replace"],
        About(
            SettingKind.CHOICE,
            "What to do with a slab of another model or version: stop with an error, or delete "
            "it and start empty.",
            "replace",
        ),
    ] = "refuse"


_TokensPerFile: TypeAlias = Annotated[
    int,
    About(
        SettingKind.COUNT,
        "Tokens whose blocks lie in one file at most: more make fewer and larger files, fewer "
        "waste less where prefixes part. For large blocks a file ends at 16 MiB before that; "
        "models with several KV-cache groups have one block a file.",
        "1024",
        minimum=1,
    ),
]
_Recheck: TypeAlias = Annotated[
    float,
    About(
        SettingKind.DURATION,
        "How soon a block that was not there is asked for again: another node's write is seen.",
        "500ms",
    ),
]
_KnownBlocks: TypeAlias = Annotated[
    int,
    About(
        SettingKind.COUNT,
        "Blocks this engine remembers the place of; about 400 bytes of memory each.",
        "1000000",
        minimum=64,
    ),
]
_KeyFile: TypeAlias = Annotated[
    str | None,
    About(
        SettingKind.FILE,
        "File with a secret that keys the checksums, so that whoever can write to the storage "
        "but lacks it cannot plant a block; closed to others, the same for every engine. "
        "`none`: the checksums find accidents only.",
        "/etc/kvtier/key",
    ),
]


class SharedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that all engines share: CephFS, Lustre, NFS, a ReadWriteMany volume.

    In short: `shared: /mnt/kv`. Nothing in it is deleted by engines: `kvtier evict` bounds it.
    """

    path: Annotated[
        str,
        About(
            SettingKind.FOLDER,
            "Folder that every engine mounts; each model has its own in it.",
            "/kv",
        ),
    ]
    tokens_per_file: _TokensPerFile = 512
    durability: Annotated[
        Literal["none", "fdatasync", "fsync"],
        About(
            SettingKind.CHOICE,
            "What must be on the device before a block counts as written: nothing (a crash of the "
            "storage may lose or truncate it, which is found out and a miss), its bytes, or also "
            "its name.",
            "fdatasync",
        ),
    ] = "none"
    direct_io: Annotated[
        Literal["auto", "always", "never"],
        About(SettingKind.CHOICE, "Bypass the page cache: see `disk.direct_io`.", "never"),
    ] = "auto"
    recheck: _Recheck = 2.0
    known_blocks: _KnownBlocks = 262_144
    io_threads: Annotated[
        int, About(SettingKind.COUNT, "Threads that read and write.", "16", minimum=1)
    ] = 8
    key_file: _KeyFile = None
    admission: _Admission = "always"


class ObjectStoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket that all engines share. In short: `objectstore: s3://bucket/prefix`.

    Credentials come from the environment or from files, as the cloud's own tools read them.
    """

    url: Annotated[
        str,
        About(
            SettingKind.URL,
            "Bucket and prefix, `s3://`, `gs://` or `az://`. For another endpoint than the "
            "cloud's set AWS_ENDPOINT_URL.",
            "s3://bucket/kvtier",
        ),
    ]
    tokens_per_file: _TokensPerFile = 512
    recheck: _Recheck = 2.0
    known_blocks: _KnownBlocks = 262_144
    io_threads: Annotated[
        int, About(SettingKind.COUNT, "Requests under way at once.", "32", minimum=1)
    ] = 16
    key_file: _KeyFile = None
    admission: Annotated[str, About(SettingKind.ADMISSION, _ADMISSION, "always")] = "second_touch"


class TransferSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Moving blocks between tiers, on threads beside the engine."""

    promote_deadline: Annotated[
        float,
        About(
            SettingKind.DURATION,
            "How long a request may wait for blocks from a lower tier before they count as a "
            "miss and are computed.",
            "500ms",
            minimum=0.001,
        ),
    ] = 5.0
    queue_blocks: Annotated[
        int,
        About(
            SettingKind.COUNT,
            "Blocks that may wait in each direction; beyond it demotions are dropped.",
            "1024",
            minimum=1,
        ),
    ] = 4096
    drain: Annotated[
        float,
        About(
            SettingKind.DURATION,
            "How long a stopping engine waits for writes that are queued.",
            "10s",
        ),
    ] = 2.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything. `ram.capacity` is the only setting without a default."""

    ram: RamSettings
    disk: DiskSettings | None = None
    shared: SharedSettings | None = None
    objectstore: ObjectStoreSettings | None = None
    transfer: TransferSettings = TransferSettings()
