"""What was decided and from what, kept as it fell out: rendering is for those who ask.

Why it exists: explaining every decision must not cost every decision. Only lists that were made
anyway are kept; `explain` turns them into text. Invariant: scores are those of the decision, and
endpoints are live: their state is that of the moment of rendering, so render at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest, Scorer
from kvtier.router.choose.tier_names import match_of


class WeightedScorer(NamedTuple):
    """A scorer of a profile."""

    name: str
    weight: float
    scorer: Scorer


class RoutingDecision:
    """Of one request under one profile."""

    __slots__ = (
        "candidates",
        "chosen",
        "kept",
        "now_s",
        "profile",
        "removed",
        "request",
        "scorers",
        "scores",
        "totals",
    )

    def __init__(
        self, profile: str, request: InferenceRequest, candidates: list[Candidate], now_s: float
    ) -> None:
        self.profile = profile
        self.request = request
        self.now_s = now_s
        self.candidates = candidates
        self.kept = candidates
        """Those whom the filters left."""
        self.removed: dict[str, str] = {}
        """Endpoint's name -> the filter that took it away."""
        self.scorers: Sequence[WeightedScorer] = ()
        self.scores: list[list[float]] = []
        """One list a scorer, in the order of `kept`, each in [0, 1]."""
        self.totals: list[float] = []
        """In the order of `kept`: the sum of weight times score."""
        self.chosen: list[Candidate] = []
        """The best, then the fallbacks in order. Empty where nobody was left."""

    @property
    def endpoints(self) -> list[Endpoint]:
        """Of `chosen`."""
        return [candidate.endpoint for candidate in self.chosen]

    def missing_tokens(self, chosen: Candidate) -> int:
        """Prompt tokens that no tier of `chosen` holds: what it adds to `pending_tokens`."""
        prompt_tokens = self.request.prompt.tokens
        return max(0, prompt_tokens - match_of(chosen, None).best_tokens)
