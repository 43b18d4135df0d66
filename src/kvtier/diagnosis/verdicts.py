"""What can be said of a difference: whether it can be undone, why it matters, what to change."""

from enum import Enum
from typing import Final, NamedTuple

from kvtier.blocks.key import KeySpace

UNKNOWN: Final = "unknown"
"""What an engine writes where it could not find out."""

UNKNOWN_WHY: Final = (
    "the engine could not find out its own configuration when it started, and what is unknown "
    "is not taken to be equal."
)
UNKNOWN_FIX: Final = (
    "Look for the warning of kvtier in that engine's log; start it with `kvtier serve` or with "
    "vLLM's own server, of a supported version, and with the model's files on this host."
)


class Verdict(Enum):
    """What can be done about a difference."""

    CHANGE = "change"
    """Engines that are started otherwise share."""
    NEVER = "never"
    """The bytes are others: whoever wants to share has to run the same."""
    FOLLOWS = "follows"
    """Nothing by itself: it is equal as soon as another field is."""


class Told(NamedTuple):
    """An explanation in plain words."""

    verdict: Verdict
    why: str
    change: str


def unknown() -> Told:
    """Of a field that one of two engines did not know."""
    return Told(Verdict.CHANGE, f"On one side {UNKNOWN_WHY}", UNKNOWN_FIX)


def differing(one: KeySpace, other: KeySpace, *fields: str) -> list[str]:
    """Which of `fields` differ."""
    return [field for field in fields if getattr(one, field) != getattr(other, field)]


def follows(causes: list[str], why: str) -> Told:
    """Of a field that is equal as soon as `causes` are."""
    return Told(Verdict.FOLLOWS, why, f"Nothing by itself: it follows from {join_words(causes)}.")


def join_words(words: list[str]) -> str:
    """`a, b and c`."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]
