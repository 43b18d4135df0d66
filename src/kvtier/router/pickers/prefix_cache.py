"""`prefix-cache-picker`: AIBrix's `prefix-cache` strategy. The longest prefix that is not busy.

Where the busiest endpoint has more than `imbalance` requests more than the idlest, the one with
the fewest. Else by match, longest first, then by requests, fewest first: the first that holds
anything and has no more requests than the mean plus `deviations` standard deviations. Else the
one with the fewest.
"""

import statistics
from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.tier_names import match_of


class PrefixCachePicker:
    """Does not look at scores."""

    class Parameters(ranking.PickerParameters, frozen=True, kw_only=True):
        """Defaults are AIBrix's."""

        prefix_match_info_producer_name: str = ""
        imbalance: int = 8
        deviations: float = 1.0

        def __post_init__(self) -> None:
            """Refuse what is no distance."""
            super().__post_init__()
            if self.imbalance < 0:
                raise ValueError(f"imbalance is {self.imbalance}; write 0 or more")
            if not self.deviations >= 0:  # NaN is neither
                raise ValueError(f"deviations is {self.deviations:g}; write 0 or more")

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        self._most = parameters.max_num_of_endpoints
        self._imbalance = parameters.imbalance
        self._deviations = parameters.deviations
        self._index = context.index
        self._random = context.random

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """O(n log n). The fallbacks are those with the fewest requests."""
        idlest = ranking.by_requests(candidates, self._random)
        counts = [ranking.requests(one) for one in idlest]
        if counts[-1] - counts[0] <= self._imbalance:
            most = statistics.fmean(counts) + self._deviations * statistics.pstdev(counts)
            # Stable: those that hold alike stay in the order of their requests.
            for one in sorted(idlest, key=lambda one: -match_of(one, self._index).ratio()):
                if match_of(one, self._index).best_tokens and ranking.requests(one) <= most:
                    others = [other for other in idlest if other is not one]
                    return [one, *others][: self._most]
        return idlest[: self._most]


PLUGIN = PrefixCachePicker
