import msgspec
import pytest

from kvtier.router.config.gauges import Engine, Extractor, Source
from kvtier.router.learn.gauges import GaugeNames


def test_an_engine_that_says_nothing_of_a_gauge_leaves_it_as_it_is() -> None:
    usual = GaugeNames()
    assert Extractor().named(usual) == usual
    named = Extractor(engine_configs=(Engine(name="a", running="x"),)).named(usual)
    assert named == msgspec.structs.replace(usual, running=("x", *usual.running))


def test_the_first_engine_counts_first() -> None:
    both = (Engine(name="a", usage="x"), Engine(name="b", usage="y"))
    assert Extractor(engine_configs=both).named(GaugeNames(usage=())).usage == ("x", "y")


def test_what_is_no_metric_and_no_path_is_refused() -> None:
    with pytest.raises(ValueError, match="no metric"):
        Extractor(engine_configs=(Engine(name="a", waiting="a b"),))
    with pytest.raises(ValueError, match="path is 'x'"):
        Source(path="x")
    assert Source(path="/x").named(GaugeNames()) == GaugeNames(path="/x")
