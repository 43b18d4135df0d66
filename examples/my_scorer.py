"""A custom scorer: a class that an EndpointPickerConfig selects by name.

Installed in a package with the following entry point, it is available as `- type: cheapest-scorer`:

    [project.entry-points."kvtier.router.scorers"]
    cheapest = "my_package.my_scorer:CheapestScorer"

Test it with `.venv/bin/python -m pytest examples/my_scorer.py`. Run as a program, it compares two
replicas, one of which costs half as much, first while both are idle and then while the cheap one
is busy.
"""

from collections.abc import Sequence

from kvtier.clock import seeded
from kvtier.index.fleet.prompt import UnreadPrompt
from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest, ReplicaLoad, Scorer
from kvtier.router.scorers.queue import QueueScorer
from kvtier.testing.scorers import ScorerContract


class CheapestParameters(plugins.PluginParameters, frozen=True, kw_only=True):
    """The scorer's `parameters` in a configuration, for example `{priceLabel: cost}`."""

    price_label: str = "price"


class CheapestScorer:
    """A scorer by the price in a replica's label: 1 for the cheapest, 0 without a label."""

    Parameters = CheapestParameters

    def __init__(self, parameters: CheapestParameters, context: plugins.PluginContext) -> None:
        self._label = parameters.price_label

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return one score per candidate, in the same order, each in [0, 1]."""
        prices = [self._price(one.endpoint) for one in candidates]
        least = min((price for price in prices if price is not None), default=0.0)
        return [0.0 if price is None else least / price if price else 1.0 for price in prices]

    def _price(self, endpoint: Endpoint) -> float | None:
        text = endpoint.labels.get(self._label)
        return None if text is None else float(text)


class TestCheapestScorer(ScorerContract):
    """The contract suite for `CheapestScorer`."""

    def make_scorer(self, context: plugins.PluginContext) -> Scorer:
        """Return a scorer for the suite to test."""
        return CheapestScorer(CheapestParameters(), context)


def main() -> None:
    """Score like a profile with a weight of 1 for the price and 2 for the queue."""
    context = plugins.PluginContext(name="cheapest", random=seeded(0), now_s=lambda: 0.0)
    cheapest = CheapestScorer(CheapestParameters(), context)
    queue = QueueScorer(QueueScorer.Parameters(), context)
    request = InferenceRequest(request_id="1", model="m", prompt=UnreadPrompt(1_000))
    for waiting in (0, 4):
        fleet = [
            replica("cheap", price="2", waiting=waiting),
            replica("expensive", price="4", waiting=0),
        ]
        prices = cheapest.score(request, fleet)
        queues = queue.score(request, fleet)
        totals = [price + 2 * wait for price, wait in zip(prices, queues, strict=True)]
        best = fleet[totals.index(max(totals))].endpoint
        print(f"{waiting} waiting at the cheap replica: {totals}, sent to {best.name}")


def replica(name: str, *, price: str, waiting: int) -> Candidate:
    """Return a candidate that holds none of the prompt."""
    endpoint = Endpoint(
        name=name,
        address=f"{name}:8000",
        models=frozenset({"m"}),
        labels={"price": price},
        load=ReplicaLoad(waiting=waiting),
    )
    return Candidate(endpoint, matches={})


if __name__ == "__main__":
    main()
