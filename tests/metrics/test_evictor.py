from kvtier.metrics import evictor
from kvtier.metrics.declaration import Metric


def test_every_declaration_is_listed_once() -> None:
    declared = {value.name for value in vars(evictor).values() if isinstance(value, Metric)}
    listed = [metric.name for metric in evictor.EVICTOR_METRICS]
    assert sorted(declared) == sorted(listed)
