"""`weighted-random-picker`: picks replicas with probabilities in proportion to their scores.

Source: Efraimidis, Spirakis, "Weighted random sampling with a reservoir", 2006. The largest of
`u ** (1 / score)`, with u uniform in (0, 1), is such a choice, and so is the order of the rest.
The logarithm of this key is used, as the key itself underflows for small scores. Replicas with a
score of 0 come last; if all have 0, the order is random.
"""

import math
from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest


class WeightedRandomPicker:
    """A picker that spreads requests where `max-score-picker` would send all to one replica."""

    Parameters = ranking.PickerParameters

    def __init__(
        self, parameters: ranking.PickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._random = context.random

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """Return the candidates in a random order weighted by score."""
        draw = self._random.random
        # Numbers are drawn in the order of names, so that the order of candidates is irrelevant.
        places = sorted(range(len(scores)), key=lambda place: candidates[place].endpoint.name)
        keys = [math.inf] * len(scores)
        for place in places:
            chance = 1.0 - draw()
            if scores[place] > 0:
                keys[place] = -math.log(chance) / scores[place]
        return ranking.ordered(candidates, keys, self._random)[: self._most]


PLUGIN = WeightedRandomPicker
