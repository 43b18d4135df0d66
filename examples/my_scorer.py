"""A scorer of your own: one class, chosen by name in an EndpointPickerConfig.

Put it into a package of yours with an entry point, and `- type: cheapest-scorer` finds it:

    [project.entry-points."kvtier.router.scorers"]
    cheapest = "my_package.my_scorer:Cheapest"

Run it with `.venv/bin/python examples/my_scorer.py`: two replicas, one of them on hardware that
costs half, first idle and then busy.
"""

from collections.abc import Sequence

from kvtier.clock import seeded
from kvtier.index.fleet.prompt import Unit
from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest, ReplicaLoad
from kvtier.router.replay import LoggedPrompt
from kvtier.router.scorers.queue import QueueScorer


class Cheapest:
    """1 for the cheapest replica, by a label that tells its price; 0 where there is none."""

    class Parameters(plugins.PluginParameters, frozen=True, kw_only=True):
        """What `parameters` in the file may say: `{priceLabel: cost}`."""

        price_label: str = "price"

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        self._label = parameters.price_label

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """One number a candidate, in the same order, each in [0, 1]."""
        prices = [float(one.endpoint.labels.get(self._label, "inf")) for one in candidates]
        least = min(prices, default=0.0)
        return [least / price if price else 1.0 for price in prices]


def main() -> None:
    """Score as a profile would: the weights 1 for the price and 2 for the queue."""
    context = plugins.PluginContext(name="cheapest", random=seeded(0), now_s=lambda: 0.0)
    cheapest = Cheapest(Cheapest.Parameters(), context)
    queue = QueueScorer(QueueScorer.Parameters(), context)
    request = InferenceRequest(request_id="1", model="m", prompt=LoggedPrompt(1_000, Unit.TOKEN))
    for waiting in (0, 4):
        fleet = [
            replica("cheap", price="2", waiting=waiting),
            replica("dear", price="4", waiting=0),
        ]
        prices = cheapest.score(request, fleet)
        queues = queue.score(request, fleet)
        totals = [price + 2 * wait for price, wait in zip(prices, queues, strict=True)]
        best = fleet[totals.index(max(totals))].endpoint
        print(f"{waiting} waiting at the cheap one: {totals}, goes to {best.name}")


def replica(name: str, *, price: str, waiting: int) -> Candidate:
    """An endpoint that holds nothing of the prompt."""
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
