"""`running-requests-size-scorer`: the fewest running requests.

`(most - running) / (most - least)` over the candidates, 1 where all run alike.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.ranking import least_is_best


class RunningRequestsSize:
    """By the requests that run in the engine, as last scraped."""

    Parameters = plugins.PluginParameters

    def __init__(
        self, parameters: plugins.PluginParameters, context: plugins.PluginContext
    ) -> None:
        """Has nothing to set."""

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """O(n)."""
        return least_is_best([candidate.endpoint.load.running for candidate in candidates])


PLUGIN = RunningRequestsSize
