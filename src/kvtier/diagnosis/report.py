"""The report of a diagnosis.

`kvtier doctor --json` prints it. Invariant: fields of format 1 are only ever added.
"""

from enum import Enum
from typing import Any, Final

import msgspec

from kvtier.blocks.key import KeySpace

FORMAT: Final = 1


class Verdict(Enum):
    """Whether a difference can be removed."""

    CHANGE = "change"
    """Engines share once they are started with other settings."""
    NEVER = "never"
    """The bytes differ: engines have to run the same model, type or hardware to share."""
    FOLLOWS = "follows"
    """A consequence: the field is equal once another field is."""


class Status(Enum):
    """The severity of a check's result."""

    OK = "ok"
    WARN = "warn"
    """It works, but may have unexpected effects."""
    FAIL = "fail"
    """An engine would not start, or would have no hits."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check."""

    topic: str
    """The setting, place or other thing that was checked."""
    status: Status
    told: str
    """What was found; error messages include the fix."""
    fix: str | None = None
    """What to do, if `told` does not say it."""


def fine(topic: str, told: str) -> Check:
    """Return a check with status OK."""
    return Check(topic=topic, status=Status.OK, told=told)


def warned(topic: str, told: str, fix: str | None = None) -> Check:
    """Return a check with status WARN; a leading `topic: ` in `told` is removed."""
    return Check(topic=topic, status=Status.WARN, told=told.removeprefix(f"{topic}: "), fix=fix)


def failed(topic: str, told: str, fix: str | None = None) -> Check:
    """Return a check with status FAIL; a leading `topic: ` in `told` is removed."""
    return Check(topic=topic, status=Status.FAIL, told=told.removeprefix(f"{topic}: "), fix=fix)


class FamilyMember(msgspec.Struct, frozen=True, kw_only=True):
    """A key space of a family."""

    label: str
    """Letters that identify it in this report."""
    place: str
    name: str
    """Name of its folder in a store."""
    space: KeySpace


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A field that keeps two key spaces apart."""

    field: str
    values: tuple[Any, Any]
    verdict: Verdict
    why: str
    change: str


class SpacePair(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison of two key spaces of one family."""

    one: str
    """Label of the first; `other` that of the second."""
    other: str
    verdict: Verdict | None
    """`never` if any difference is; None without differences."""
    conclusion: str
    differences: list[Difference]


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """Key spaces of one model, identified by its name or its weights."""

    models: list[str]
    members: list[FamilyMember]
    pairs: list[SpacePair]
    pairs_left_out: int = 0


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The report of one run of `kvtier doctor`."""

    format: int = FORMAT
    ok: bool
    """Whether no check failed."""
    checks: list[Check]
    families: list[Family]


def report_of(checks: list[Check], families: list[Family]) -> Diagnosis:
    """Return the report with these checks and families."""
    fails = any(check.status is Status.FAIL for check in checks)
    return Diagnosis(ok=not fails, checks=checks, families=families)
