from kvtier.router.choose import plugins
from kvtier.router.config import compatibility, gauges
from kvtier.router.config.indexes import IndexWiring


def test_plugin_names_are_either_known_ignored_or_rejected() -> None:
    groups = [
        set(plugins.known_plugins()),
        set(compatibility.SILENT),
        set(compatibility.IGNORED),
        set(compatibility.REFUSED),
        set(IndexWiring.producers),
        set(gauges.METRICS_PLUGINS),
    ]
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_all_ignored_and_rejected_names_have_a_reason() -> None:
    for table in (compatibility.IGNORED, compatibility.REFUSED, compatibility.SECTIONS):
        assert all(table.values())


def test_reasons_name_the_flags_that_list_endpoints() -> None:
    for why in (compatibility.IGNORED["file-discovery"], compatibility.SECTIONS["dataLayer"]):
        assert "--endpoints (kvtier epp)" in why
        assert "--replicas (kvtier route)" in why
