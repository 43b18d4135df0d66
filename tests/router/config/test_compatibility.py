from kvtier.router.choose import plugins
from kvtier.router.config import compatibility as field
from kvtier.router.config import gauges as engines
from kvtier.router.config.indexes import IndexWiring


def test_a_name_is_either_a_part_or_ignored_or_refused() -> None:
    groups = [
        set(plugins.known_plugins()),
        set(field.SILENT),
        set(field.IGNORED),
        set(field.REFUSED),
        set(IndexWiring.producers),
        set(engines.METRICS_PLUGINS),
    ]
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_every_reason_is_said() -> None:
    for table in (field.IGNORED, field.REFUSED, field.SECTIONS):
        assert all(table.values())


def test_whoever_lists_endpoints_is_told_where() -> None:
    for why in (field.IGNORED["file-discovery"], field.SECTIONS["dataLayer"]):
        assert "--endpoints (kvtier epp)" in why
        assert "--replicas (kvtier route)" in why
