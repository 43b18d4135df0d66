"""`running-requests-size-scorer`: prefers the replicas with the fewest running requests.

The score is `(most - running) / (most - least)` over the candidates, and 1 if all are equal.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.ranking import least_is_best


class RunningRequestsSizeScorer:
    """A scorer by the requests running in the engine at the last scrape."""

    Parameters = plugins.PluginParameters

    def __init__(
        self, parameters: plugins.PluginParameters, context: plugins.PluginContext
    ) -> None:
        """Ignore both arguments: the plugin has no settings."""

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score per candidate."""
        return least_is_best([candidate.endpoint.load.running for candidate in candidates])


PLUGIN = RunningRequestsSizeScorer
