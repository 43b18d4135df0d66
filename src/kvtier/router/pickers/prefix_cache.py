"""`prefix-cache-picker`: picks the replica with the longest prefix that is not busy.

This is the `prefix-cache` strategy of AIBrix. If the busiest replica has over `imbalance` more
requests than the idlest one, it picks the replica with the fewest requests. Otherwise it orders
the replicas by match, longest first, then by requests, fewest first, and picks the first one that
holds any of the prompt and has at most the mean plus `deviations` standard deviations of requests.
If there is none, it picks the replica with the fewest requests.
"""

import statistics
from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.tier_names import match_of


class PrefixCachePickerParameters(ranking.PickerParameters, frozen=True, kw_only=True):
    """The index and the bounds of load; the defaults are those of AIBrix."""

    prefix_match_info_producer_name: str = ""
    imbalance: int = 8
    deviations: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for negative bounds."""
        super().__post_init__()
        if self.imbalance < 0:
            raise ValueError(f"imbalance is {self.imbalance}; write 0 or more")
        if not self.deviations >= 0:  # also rejects NaN
            raise ValueError(f"deviations is {self.deviations:g}; write 0 or more")


class PrefixCachePicker:
    """A picker by prefix match and load, which ignores scores."""

    Parameters = PrefixCachePickerParameters

    def __init__(
        self, parameters: PrefixCachePickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._imbalance = parameters.imbalance
        self._deviations = parameters.deviations
        self._index = context.index
        self._random = context.random

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """Return the best candidate, then the fallbacks by ascending number of requests."""
        idlest = ranking.by_requests(candidates, self._random)
        counts = [ranking.requests(one) for one in idlest]
        if counts[-1] - counts[0] <= self._imbalance:
            most = statistics.fmean(counts) + self._deviations * statistics.pstdev(counts)
            # The sort is stable, so replicas with equal matches stay ordered by requests.
            for one in sorted(idlest, key=lambda one: -match_of(one, self._index).ratio()):
                if match_of(one, self._index).best_tokens and ranking.requests(one) <= most:
                    others = [other for other in idlest if other is not one]
                    return [one, *others][: self._most]
        return idlest[: self._most]


PLUGIN = PrefixCachePicker
