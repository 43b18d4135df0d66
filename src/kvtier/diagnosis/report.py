"""What a diagnosis found: the same for people and for programs.

Invariant: fields of format 1 are only ever added.
"""

from enum import Enum
from typing import Any, Final

import msgspec

from kvtier.blocks.key import KeySpace


class Verdict(Enum):
    """What can be done about a difference."""

    CHANGE = "change"
    """Engines that are started otherwise share."""
    NEVER = "never"
    """The bytes are others: whoever wants to share has to run the same."""
    FOLLOWS = "follows"
    """Nothing by itself: it is equal as soon as another field is."""


FORMAT: Final = 1


class Status(Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """It works, and something about it will surprise."""
    FAIL = "fail"
    """An engine would not start, or would have no hits."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    topic: str
    """A setting, or what else was looked at."""
    status: Status
    told: str
    """What was found; of a refusal also the fix."""
    fix: str | None = None
    """What to do, where `told` does not say it."""


def fine(topic: str, told: str) -> Check:
    """Nothing to do."""
    return Check(topic=topic, status=Status.OK, told=told)


def warned(topic: str, told: str, fix: str | None = None) -> Check:
    """To be known. What `told` begins with, as errors do, is not said twice."""
    return Check(topic=topic, status=Status.WARN, told=told.removeprefix(f"{topic}: "), fix=fix)


def failed(topic: str, told: str, fix: str | None = None) -> Check:
    """To be put right. As `warned`."""
    return Check(topic=topic, status=Status.FAIL, told=told.removeprefix(f"{topic}: "), fix=fix)


class FamilyMember(msgspec.Struct, frozen=True, kw_only=True):
    """A key space that was found."""

    label: str
    """A letter, to speak of it."""
    place: str
    name: str
    """Of its folder in a store."""
    space: KeySpace


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A field that keeps two key spaces apart."""

    field: str
    values: tuple[Any, Any]
    verdict: Verdict
    why: str
    change: str


class SpacePair(msgspec.Struct, frozen=True, kw_only=True):
    """Two key spaces of one model."""

    one: str
    """Label."""
    other: str
    verdict: Verdict | None
    """`never` where one difference is that; None where nothing differs."""
    conclusion: str
    differences: list[Difference]


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """Key spaces of one model, by its name or by its weights."""

    models: list[str]
    members: list[FamilyMember]
    pairs: list[SpacePair]
    pairs_left_out: int = 0


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Of one run of `kvtier doctor`."""

    format: int = FORMAT
    ok: bool
    """Nothing fails."""
    checks: list[Check]
    families: list[Family]


def report_of(checks: list[Check], families: list[Family]) -> Diagnosis:
    """Sum it up."""
    fails = any(check.status is Status.FAIL for check in checks)
    return Diagnosis(ok=not fails, checks=checks, families=families)
