"""The scale that several scorers share: the least of a quantity is best.

Invariant: the answer depends on the values alone, not on their order.
"""

from collections.abc import Sequence


def least_is_best(values: Sequence[float]) -> list[float]:
    """1 for the least, 0 for the most, linear between; 1 for all where all are equal."""
    if not values:
        return []
    least, most = min(values), max(values)
    if least == most:
        return [1.0] * len(values)
    span = most - least
    return [(most - value) / span for value in values]
