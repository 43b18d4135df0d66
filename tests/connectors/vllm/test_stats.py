"""The declared metrics in vLLM's types; test_manager.py tests what is reported."""

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingGaugeMetadata

from kvtier.connectors.vllm import stats
from kvtier.metrics import engine as metrics
from kvtier.metrics.declaration import LABEL_VALUES
from kvtier.transfer.base import Direction


def test_definitions_cover_every_metric_with_kind_and_labels() -> None:
    definitions = stats.definitions()
    assert set(definitions) == {metric.name for metric in metrics.METRICS}
    assert isinstance(definitions["kvtier_hit_tokens"], OffloadingCounterMetadata)
    capacity = definitions["kvtier_capacity_tokens"]
    assert isinstance(capacity, OffloadingGaugeMetadata)
    assert capacity.labelnames == ("tier",)


def test_directions_have_declared_labels() -> None:
    labels = {stats._DIRECTIONS[direction] for direction in Direction}
    assert labels == set(LABEL_VALUES["direction"])
