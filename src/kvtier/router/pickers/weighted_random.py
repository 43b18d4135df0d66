"""`weighted-random-picker`: each with a probability in proportion to its score.

Source: Efraimidis, Spirakis, "Weighted random sampling with a reservoir", 2006: the largest of
`u ** (1 / score)`, u uniform in (0, 1), is such a choice, and the order of the rest is one as
well. Taken as its logarithm, which does not vanish for small scores. Who scores 0 comes last;
all alike where everybody scores 0.
"""

import math
from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest


class WeightedRandom:
    """Spreads where `max-score-picker` would send everything to one endpoint."""

    Parameters = ranking.PickerParameters

    def __init__(
        self, parameters: ranking.PickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._random = context.random

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """O(n log n)."""
        draw = self._random.random
        # Drawn in the order of the names, so that the order of the candidates does not matter.
        places = sorted(range(len(scores)), key=lambda place: candidates[place].endpoint.name)
        keys = [math.inf] * len(scores)
        for place in places:
            chance = 1.0 - draw()
            if scores[place] > 0:
                keys[place] = -math.log(chance) / scores[place]
        return ranking.ordered(candidates, keys, self._random)[: self._most]


PLUGIN = WeightedRandom
