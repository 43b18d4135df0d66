"""What a client wrote, as it may stand in a log or an error: short, printable, on one line."""

from typing import Final

_MOST: Final = 100


def shown(text: str, most: int = _MOST) -> str:
    """`text`, escaped where it is not printable; its first `most` characters where it is longer."""
    escaped = repr(text[:most])[1:-1]
    return escaped if len(text) <= most else f"{escaped}..."
