"""The settings tree: every setting of kvtier, its default, and what it means.

YAML keys, `KVTIER_` variables, flags, `kvtier config show` and the reference are all derived
from these classes, so they cannot disagree. The tree holds plain data. Sizes are in bytes and
durations in seconds; `options` parses the text that users write.
"""

import enum
from typing import Annotated, Literal, TypeAlias

import msgspec


class SettingKind(enum.Enum):
    """How the text of a setting is parsed."""

    SIZE = "size"
    DURATION = "duration"
    COUNT = "count"
    FOLDER = "folder"
    FILE = "file"
    """A path, or `none`."""
    URL = "url"
    CHOICE = "choice"
    EVICTION = "eviction"
    ADMISSION = "admission"


class About(msgspec.Struct, frozen=True):
    """The documentation of a setting."""

    kind: SettingKind
    text: str
    example: str
    minimum: float = 0
    """The smallest valid count or duration."""


# The settings that several tiers have in common.
_EVICTION = (
    "Policy that chooses the block to evict when the tier is full: the name of a module in "
    "`kvtier.eviction`."
)
_ADMISSION = (
    "Policy that decides which blocks enter the tier: the name of a module in `kvtier.admission`."
)
_Admission: TypeAlias = Annotated[str, About(SettingKind.ADMISSION, _ADMISSION, "second_touch")]


class RamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The tier in host memory; every block passes through it. Short form: `ram: 64GiB`."""

    capacity: Annotated[
        int,
        About(
            SettingKind.SIZE,
            "Host memory for blocks. It is allocated at start and never exceeded.",
            "64GiB",
        ),
    ]
    eviction: Annotated[str, About(SettingKind.EVICTION, _EVICTION, "arc")] = "lru"
    admission: _Admission = "always"


class DiskSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The tier on a local disk; it survives restarts. Short form: `disk: /mnt/nvme/kv=500GiB`."""

    path: Annotated[
        str,
        About(
            SettingKind.FOLDER,
            "Folder of the slab. It is created with mode 0700; one engine at a time can use it.",
            "/mnt/nvme/kvtier",
        ),
    ]
    capacity: Annotated[
        int,
        About(
            SettingKind.SIZE,
            "Largest size of the folder on the device: blocks, log and checkpoint together.",
            "500GiB",
        ),
    ]
    eviction: Annotated[str, About(SettingKind.EVICTION, _EVICTION, "sieve")] = "lru"
    admission: _Admission = "always"
    io_threads: Annotated[
        int,
        About(SettingKind.COUNT, "Number of threads that read and write the slab.", "8", minimum=1),
    ] = 4
    direct_io: Annotated[
        Literal["auto", "always", "never"],
        About(
            SettingKind.CHOICE,
            "Whether to bypass the page cache (O_DIRECT): if the file system supports it, always "
            "(an error if it does not), or never.",
            "always",
        ),
    ] = "auto"
    on_mismatch: Annotated[
        Literal["refuse", "replace"],
        About(
            SettingKind.CHOICE,
            "What to do with a slab that another model or version has written: stop with an error, "
            "or delete it and start empty.",
            "replace",
        ),
    ] = "refuse"


_TokensPerFile: TypeAlias = Annotated[
    int,
    About(
        SettingKind.COUNT,
        "Largest number of tokens whose blocks share one file. More tokens make fewer and larger "
        "files; fewer tokens waste less space where prompts diverge. A file also ends at 16 MiB, "
        "and models with several KV-cache groups have one block per file.",
        "1024",
        minimum=1,
    ),
]
_Recheck: TypeAlias = Annotated[
    float,
    About(
        SettingKind.DURATION,
        "How long a block that was not found counts as missing. After that the store is asked "
        "again, because another node may have written the block.",
        "500ms",
    ),
]
_KnownBlocks: TypeAlias = Annotated[
    int,
    About(
        SettingKind.COUNT,
        "Number of blocks whose location this engine remembers; each takes about 400 bytes of "
        "memory.",
        "1000000",
        minimum=64,
    ),
]
_KeyFile: TypeAlias = Annotated[
    str | None,
    About(
        SettingKind.FILE,
        "File with a secret that keys the checksums: nobody without it can plant a block in the "
        "storage. Every engine needs the same secret, and no other user may read the file. With "
        "`none` the checksums detect accidental damage only.",
        "/etc/kvtier/key",
    ),
]


class SharedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that all engines share: CephFS, Lustre, NFS, a ReadWriteMany volume.

    Short form: `shared: /mnt/kv`. Engines delete nothing in it; `kvtier evict` bounds its size.
    """

    path: Annotated[
        str,
        About(
            SettingKind.FOLDER,
            "Folder that every engine mounts. Each key space gets its own folder in it.",
            "/kv",
        ),
    ]
    tokens_per_file: _TokensPerFile = 512
    durability: Annotated[
        Literal["none", "fdatasync", "fsync"],
        About(
            SettingKind.CHOICE,
            "What must be on the device before a block counts as written: nothing, its bytes "
            "(`fdatasync`), or its bytes and its name (`fsync`). With `none` a crash of the "
            "storage may lose or truncate blocks; this is detected, and they become misses.",
            "fdatasync",
        ),
    ] = "none"
    direct_io: Annotated[
        Literal["auto", "always", "never"],
        About(
            SettingKind.CHOICE,
            "Whether to bypass the page cache (O_DIRECT), as for `disk.direct_io`.",
            "never",
        ),
    ] = "auto"
    recheck: _Recheck = 2.0
    known_blocks: _KnownBlocks = 262_144
    io_threads: Annotated[
        int,
        About(SettingKind.COUNT, "Number of threads that read and write files.", "16", minimum=1),
    ] = 8
    key_file: _KeyFile = None
    admission: _Admission = "always"


class ObjectStoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket that all engines share. Short form: `objectstore: s3://bucket/prefix`.

    Credentials are read from the environment or from files, as the tools of the cloud do.
    """

    url: Annotated[
        str,
        About(
            SettingKind.URL,
            "Bucket and prefix, as `s3://`, `gs://` or `az://`. Set AWS_ENDPOINT_URL to use "
            "another S3 server than Amazon's.",
            "s3://bucket/kvtier",
        ),
    ]
    tokens_per_file: _TokensPerFile = 512
    recheck: _Recheck = 2.0
    known_blocks: _KnownBlocks = 262_144
    io_threads: Annotated[
        int, About(SettingKind.COUNT, "Number of concurrent requests.", "32", minimum=1)
    ] = 16
    key_file: _KeyFile = None
    admission: Annotated[str, About(SettingKind.ADMISSION, _ADMISSION, "always")] = "second_touch"


class TransferSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The transfer of blocks between tiers, on threads beside the engine."""

    promote_deadline: Annotated[
        float,
        About(
            SettingKind.DURATION,
            "How long a request may wait for blocks from a lower tier. Blocks that are later count "
            "as misses and are computed.",
            "500ms",
            minimum=0.001,
        ),
    ] = 5.0
    queue_blocks: Annotated[
        int,
        About(
            SettingKind.COUNT,
            "Number of blocks that may wait for a transfer in each direction. Beyond it, demotions "
            "are dropped.",
            "1024",
            minimum=1,
        ),
    ] = 4096
    drain: Annotated[
        float,
        About(SettingKind.DURATION, "How long a stopping engine waits for queued writes.", "10s"),
    ] = 2.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The complete settings. `ram.capacity` is the only required one."""

    ram: RamSettings
    disk: DiskSettings | None = None
    shared: SharedSettings | None = None
    objectstore: ObjectStoreSettings | None = None
    transfer: TransferSettings = TransferSettings()
