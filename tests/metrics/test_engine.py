from kvtier.metrics import engine
from kvtier.metrics.declaration import Metric


def test_every_declaration_is_listed_once() -> None:
    declared = {value.name for value in vars(engine).values() if isinstance(value, Metric)}
    listed = [metric.name for metric in engine.METRICS]
    assert sorted(declared) == sorted(listed)
