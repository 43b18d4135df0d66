from kvtier.metrics import router
from kvtier.metrics.declaration import Metric


def test_every_declaration_is_listed_once() -> None:
    declared = {value.name for value in vars(router).values() if isinstance(value, Metric)}
    listed = [
        metric.name for metric in router.ROUTE_METRICS + router.EPP_METRICS + router.ROUTER_METRICS
    ]
    assert sorted(declared) == sorted(listed)
