"""The result of a decision, with the intermediate lists that explain it.

A decision keeps only lists that choosing builds anyway, so that explanations cost nothing until
one is rendered: `record` turns a decision into data and `explain` into text. Invariant: the scores
are those of the decision, but the endpoints are live objects, so a decision must be recorded
before their state changes.
"""

from collections.abc import Sequence
from typing import NamedTuple

from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest, Scorer
from kvtier.router.choose.tier_names import match_of


class WeightedScorer(NamedTuple):
    """A scorer of a profile, with its name and weight."""

    name: str
    weight: float
    scorer: Scorer


class RoutingDecision:
    """The decision on one request under one profile."""

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
        """The candidates that passed the filters."""
        self.removed: dict[str, str] = {}
        """Name of a removed endpoint -> name of the filter that removed it."""
        self.scorers: Sequence[WeightedScorer] = ()
        self.scores: list[list[float]] = []
        """One list per scorer, in the order of `kept`; each score is in [0, 1]."""
        self.totals: list[float] = []
        """Weighted sums of the scores, in the order of `kept`."""
        self.chosen: list[Candidate] = []
        """The best candidate, then the fallbacks in order; empty if no candidate was left."""

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints of `chosen`."""
        return [candidate.endpoint for candidate in self.chosen]

    def missing_tokens(self, chosen: Candidate) -> int:
        """Return the prompt tokens that no tier of `chosen` holds and that it has to compute."""
        prompt_tokens = self.request.prompt.tokens
        return max(0, prompt_tokens - match_of(chosen, None).best_tokens)
