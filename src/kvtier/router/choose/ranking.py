"""What pickers share: how many they name, who has the fewest requests, ties at random.

A picker that goes by one number a candidate says it in `keys(candidates, scores)`, a static
method, the least the best: so `replay` knows whom it might as well have picked.
Invariant: ties are broken by the seed alone, never by the order in which candidates come.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate

MOST_ENDPOINTS: Final = 4
"""The best and three to fall back to, where a configuration does not say."""


class PickerParameters(plugins.PluginParameters, frozen=True, kw_only=True):
    """Of every picker."""

    max_num_of_endpoints: int = MOST_ENDPOINTS

    def __post_init__(self) -> None:
        """Somebody has to be picked."""
        if self.max_num_of_endpoints < 1:
            raise ValueError(f"maxNumOfEndpoints is {self.max_num_of_endpoints}; write 1 or more")


def shuffled(candidates: Iterable[Candidate], random: plugins.Random) -> list[Candidate]:
    """In random order, which depends on the names and the seed and not on the order given."""
    mixed = sorted(candidates, key=lambda one: one.endpoint.name)
    random.shuffle(mixed)
    return mixed


def ordered(
    candidates: Sequence[Candidate], keys: Sequence[float], random: plugins.Random
) -> list[Candidate]:
    """By key, the least first; ties at random. O(n log n)."""
    by_name = sorted(range(len(keys)), key=lambda place: candidates[place].endpoint.name)
    random.shuffle(by_name)
    by_name.sort(key=keys.__getitem__)
    return [candidates[place] for place in by_name]


def requests(candidate: Candidate) -> int:
    """On the endpoint: what this router has in flight there, or what the engine reports."""
    load = candidate.endpoint.load
    return max(candidate.endpoint.in_flight, load.waiting + load.running)


def by_requests(
    candidates: Sequence[Candidate],
    random: plugins.Random,
    count: Callable[[Candidate], float] = requests,
) -> list[Candidate]:
    """The fewest requests first; ties at random."""
    return ordered(candidates, [count(one) for one in candidates], random)


def least_is_best(values: Sequence[float]) -> list[float]:
    """1 for the least, 0 for the most, linear between; 1 for all where all are equal."""
    if not values:
        return []
    least, most = min(values), max(values)
    if least == most:
        return [1.0] * len(values)
    span = most - least
    return [(most - value) / span for value in values]
