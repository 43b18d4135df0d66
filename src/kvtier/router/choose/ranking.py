"""Ordering and scaling of candidates that pickers and scorers share.

A picker that orders candidates by one key each exposes it as a static method
`keys(candidates, scores)`, in which the smallest key is the best. A replay uses it to tell which
candidates the picker could equally have picked.
Invariant: ties are broken by the seed alone and never by the order of the candidates.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate

MOST_ENDPOINTS: Final = 4
"""The default number of endpoints that a picker returns: the best and three fallbacks."""


class PickerParameters(plugins.PluginParameters, frozen=True, kw_only=True):
    """The parameters that all pickers have."""

    max_num_of_endpoints: int = MOST_ENDPOINTS

    def __post_init__(self) -> None:
        """Raise ValueError unless at least one endpoint is to be returned."""
        if self.max_num_of_endpoints < 1:
            raise ValueError(f"maxNumOfEndpoints is {self.max_num_of_endpoints}; write 1 or more")


def shuffled(candidates: Iterable[Candidate], random: plugins.Random) -> list[Candidate]:
    """Return the candidates in a random order that depends only on their names and the seed."""
    mixed = sorted(candidates, key=lambda one: one.endpoint.name)
    random.shuffle(mixed)
    return mixed


def ordered(
    candidates: Sequence[Candidate], keys: Sequence[float], random: plugins.Random
) -> list[Candidate]:
    """Return the candidates by ascending key, with ties in random order."""
    by_name = sorted(range(len(keys)), key=lambda place: candidates[place].endpoint.name)
    random.shuffle(by_name)
    by_name.sort(key=keys.__getitem__)
    return [candidates[place] for place in by_name]


def requests(candidate: Candidate) -> int:
    """Return the requests on the replica: this router's own, or the engine's count if higher."""
    load = candidate.endpoint.load
    return max(candidate.endpoint.in_flight, load.waiting + load.running)


def by_requests(
    candidates: Sequence[Candidate],
    random: plugins.Random,
    count: Callable[[Candidate], float] = requests,
) -> list[Candidate]:
    """Return the candidates by ascending `count`, with ties in random order."""
    return ordered(candidates, [count(one) for one in candidates], random)


def least_is_best(values: Sequence[float]) -> list[float]:
    """Scale values to scores: 1 for the least, 0 for the most, linear between; 1 if all are equal.

    A score depends on the values alone, not on their order.
    """
    if not values:
        return []
    least, most = min(values), max(values)
    if least == most:
        return [1.0] * len(values)
    span = most - least
    return [(most - value) / span for value in values]
