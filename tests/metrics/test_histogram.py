from kvtier.metrics.histogram import Histogram
from kvtier.metrics.router import EPP_CHOOSING_SECONDS


def test_histogram_buckets_are_cumulative() -> None:
    histogram = Histogram(EPP_CHOOSING_SECONDS)
    for value in (0.0001, 0.0002, 9.0):
        histogram.add(value)
    samples = {
        (sample.name.rpartition("_")[2], sample.labels.get("le")): sample.value
        for sample in histogram.family().samples
    }
    assert samples["bucket", "0.0001"] == 1
    assert samples["bucket", "0.00025"] == 2
    assert samples["bucket", "5.0"] == 2
    assert samples["bucket", "+Inf"] == samples["count", None] == 3
    assert round(samples["sum", None], 6) == 9.0003
