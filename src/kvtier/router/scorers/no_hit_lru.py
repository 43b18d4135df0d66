"""`no-hit-lru-scorer`: prompts that nobody holds go round, so that caches grow evenly.

0.5 for all where any candidate holds any of the prompt. Else `1 - rank / (n - 1)`: first those
that never got such a prompt, by name, then the least recently used; 1 for a single one.
Candidates are those that filters left: what a request was scored as is what it counts as when it
is sent, or who holds a prompt and is filtered away would stop the round.
"""

from collections import OrderedDict
from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.tier_names import match_of


class NoHitLRU:
    """Remembers who got a cold prompt last, `lruSize` endpoints at most."""

    class Parameters(plugins.IndexReaderParameters, frozen=True, kw_only=True):
        """`prefixPluginName` is the older word for the producer, or names its scorer."""

        lru_size: int = 1024
        prefix_plugin_name: str = ""
        prefix_plugin_type: str = ""

        def __post_init__(self) -> None:
            """Something has to be remembered."""
            if self.lru_size < 1:
                raise ValueError(f"lruSize is {self.lru_size}; write 1 or more")

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        self._index = context.index
        self._size = parameters.lru_size
        self._used: OrderedDict[str, None] = OrderedDict()
        self._scored: tuple[InferenceRequest | None, bool] = (None, False)
        """The last request, and whether it was cold."""

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """O(n log n) for a cold prompt."""
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
        """A cold prompt makes `chosen` the most recently used."""
        scored, cold = self._scored
        # A fallback gets its request after others were scored.
        if not (cold if scored is request else self._cold(candidates)):
            return
        self._used[chosen.endpoint.name] = None
        self._used.move_to_end(chosen.endpoint.name)
        if len(self._used) > self._size:
            self._used.popitem(last=False)

    def reason(self, request: InferenceRequest, candidate: Candidate) -> str:
        """Whether it ever got one."""
        used = candidate.endpoint.name in self._used
        return "had a cold prompt before" if used else "never had a cold prompt"

    def _cold(self, candidates: Sequence[Candidate]) -> bool:
        return not any(match_of(candidate, self._index).best_tokens for candidate in candidates)


PLUGIN = NoHitLRU
