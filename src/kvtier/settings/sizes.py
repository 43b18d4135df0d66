"""Parses and formats sizes and durations with units: `64GiB`, `1.5GiB`, `250ms`, `5m`.

Invariant: formatting is exact, so `parse_size(format_size(n)) == n`, and likewise for durations.
A bare `20G` is refused, because some tools read it as 20 * 10^9 and others as 20 * 2^30.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final

from kvtier.errors import InvalidSettings

_SIZE_UNITS: Final = {
    "B": Fraction(1),
    **{f"{prefix}iB": Fraction(1024**power) for power, prefix in enumerate("KMGTP", start=1)},
    **{f"{prefix}B": Fraction(1000**power) for power, prefix in enumerate("KMGTP", start=1)},
}
# The units of Kubernetes resource quantities; these are not ambiguous.
_KUBERNETES_UNITS: Final = {f"{prefix}i": _SIZE_UNITS[f"{prefix}iB"] for prefix in "KMGTP"}
_DURATION_UNITS: Final = {
    "s": Fraction(1),
    "us": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1000),
    "m": Fraction(60),
    "h": Fraction(3600),
}
_AMOUNT = re.compile(r"(?P<number>\d{1,30}(?:\.\d{1,400})?)\s*(?P<unit>[A-Za-z]*)", re.ASCII)

SIZE_EXAMPLES: Final = "64GiB, 1.5GiB, 20GB or a plain number of bytes"
DURATION_EXAMPLES: Final = "250ms, 2s, 5m or a plain number of seconds"


def parse_size(value: object, setting: str) -> int:
    """Return the bytes that `value` means: text with a unit, or a whole number of bytes.

    Raises InvalidSettings naming `setting`, the text and examples. Zero is refused as well: no
    tier has a capacity of zero.
    """
    size = _amount(value, _SIZE_UNITS | _KUBERNETES_UNITS)
    if size is None or size < 1:
        raise InvalidSettings(f"{setting}: {value!r} is not a size; write {SIZE_EXAMPLES}")
    return int(size)


def format_size(size_bytes: int) -> str:
    """Return the shortest exact text: `20GiB`, `20GB`, `1048577B`."""
    return _shortest(Fraction(size_bytes), _SIZE_UNITS)


def approximate_size(size_bytes: int) -> str:
    """Return a rounded text for messages, such as `22.9GiB`."""
    for unit in ("PiB", "TiB", "GiB", "MiB", "KiB"):
        if size_bytes >= _SIZE_UNITS[unit]:
            return f"{size_bytes / float(_SIZE_UNITS[unit]):.1f}{unit}"
    return f"{size_bytes}B"


def parse_duration(value: object, setting: str) -> float:
    """Return the seconds that `value` means: text with a unit, or a number of seconds, maybe 0.

    Raises InvalidSettings naming `setting`, the text and examples.
    """
    duration = _amount(value, _DURATION_UNITS)
    if duration is None:
        raise InvalidSettings(f"{setting}: {value!r} is not a duration; write {DURATION_EXAMPLES}")
    return float(duration)


def format_duration(seconds: float) -> str:
    """Return the shortest exact text: `250ms`, `2s`, `5m`."""
    exact = Fraction(str(seconds))
    if (exact * 1_000_000).denominator > 1:  # finer than the finest unit
        return f"{_decimal(seconds)}s"
    return _shortest(exact, _DURATION_UNITS)


def _amount(value: object, units: Mapping[str, Fraction]) -> Fraction | None:
    """Return the exact amount, or None if `value` is not an amount."""
    if not isinstance(value, str | int | float):
        return None
    text = _decimal(value) if isinstance(value, float) else str(value)
    matched = _AMOUNT.fullmatch(text.strip())
    if matched is None:
        return None
    known = {"": Fraction(1), **{unit.lower(): factor for unit, factor in units.items()}}
    factor = known.get(matched["unit"].lower())
    return None if factor is None else Fraction(matched["number"]) * factor


def _decimal(number: float) -> str:
    """Return all digits of `number`, without an exponent."""
    return format(Decimal(str(number)), "f")


def _shortest(amount: Fraction, units: Mapping[str, Fraction]) -> str:
    """Return the amount as the whole number with the fewest digits, with its unit."""
    scaled = ((amount / factor, unit) for unit, factor in units.items())
    whole = [(str(number.numerator), unit) for number, unit in scaled if number.denominator == 1]
    digits, unit = min(whole, key=lambda pair: len(pair[0]))
    return digits + unit
