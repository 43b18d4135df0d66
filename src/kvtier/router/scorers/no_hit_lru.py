"""`no-hit-lru-scorer`: spreads cold prompts, which no replica holds, so that caches grow evenly.

The score is 0.5 for all if any candidate holds part of the prompt. Otherwise it is
`1 - rank / (n - 1)`, or 1 for a single candidate: replicas that never received a cold prompt rank
first, by name, then the one that received a cold prompt least recently.
Only candidates that passed the filters count. When the request is sent, it keeps the
classification it had when scored; otherwise a replica that holds the prompt but was filtered out
would keep the order from advancing.
"""

from collections import OrderedDict
from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.tier_names import match_of


class NoHitLRUParameters(plugins.IndexReaderParameters, frozen=True, kw_only=True):
    """The index and the number of replicas to remember.

    `prefixPluginName` is the older API's name of the producer, or of the scorer with the index.
    """

    lru_size: int = 1024
    prefix_plugin_name: str = ""
    prefix_plugin_type: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a size below 1."""
        if self.lru_size < 1:
            raise ValueError(f"lruSize is {self.lru_size}; write 1 or more")


class NoHitLRUScorer:
    """A scorer that remembers which replicas received cold prompts last, at most `lruSize`."""

    Parameters = NoHitLRUParameters

    def __init__(self, parameters: NoHitLRUParameters, context: plugins.PluginContext) -> None:
        self._index = context.index
        self._size = parameters.lru_size
        self._used: OrderedDict[str, None] = OrderedDict()
        self._scored: tuple[InferenceRequest | None, bool] = (None, False)
        """The last scored request, and whether its prompt was cold."""

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score per candidate."""
        cold = self._cold(candidates)
        self._scored = (request, cold)
        if not cold:
            return [0.5] * len(candidates)
        if len(candidates) == 1:
            return [1.0]
        ages = {name: age for age, name in enumerate(self._used, start=1)}
        names = [candidate.endpoint.name for candidate in candidates]
        order = sorted(names, key=lambda name: (ages.get(name, 0), name))
        last = len(order) - 1
        ranks = {name: rank for rank, name in enumerate(order)}
        return [1.0 - ranks[name] / last for name in names]

    def routed(
        self, request: InferenceRequest, candidates: Sequence[Candidate], chosen: Candidate
    ) -> None:
        """Make `chosen` the most recently used replica if the prompt was cold."""
        scored, cold = self._scored
        # A fallback is sent its request only after other requests have been scored.
        if not (cold if scored is request else self._cold(candidates)):
            return
        self._used[chosen.endpoint.name] = None
        self._used.move_to_end(chosen.endpoint.name)
        if len(self._used) > self._size:
            self._used.popitem(last=False)

    def reason(self, request: InferenceRequest, candidate: Candidate) -> str:
        """Return whether the replica has received a cold prompt before."""
        used = candidate.endpoint.name in self._used
        return "received a cold prompt before" if used else "never received a cold prompt"

    def _cold(self, candidates: Sequence[Candidate]) -> bool:
        return not any(match_of(candidate, self._index).best_tokens for candidate in candidates)


PLUGIN = NoHitLRUScorer
