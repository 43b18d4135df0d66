import json
from pathlib import Path

from kvtier_bench.lineup import (
    ALONE,
    KVTIER_DISK,
    KVTIER_RAM,
    LIMIT,
    NATIVE,
    RAM_BYTES,
    kvtier_transfer,
    lineup,
)


def test_lineup_has_all_contestants_in_order() -> None:
    assert list(lineup(Path("d"))) == [ALONE, NATIVE, KVTIER_RAM, KVTIER_DISK, LIMIT]


def test_alone_and_limit_differ_only_in_device_cache() -> None:
    everyone = lineup(Path("d"))
    assert everyone[ALONE].kv_transfer is everyone[LIMIT].kv_transfer is None
    assert everyone[ALONE].device_blocks is None
    assert everyone[LIMIT].device_blocks is not None


def test_connectors_get_the_same_ram() -> None:
    everyone = lineup(Path("d"))
    native = everyone[NATIVE].kv_transfer
    ours = everyone[KVTIER_RAM].kv_transfer
    assert native is not None
    assert ours is not None
    assert native["kv_connector_extra_config"]["cpu_bytes_to_use"] == RAM_BYTES
    assert ours["kv_connector_extra_config"]["ram"] == f"{RAM_BYTES // 2**20}MiB"


def test_only_native_tiering_needs_the_peers_folder() -> None:
    assert [each.name for each in lineup(Path("d")).values() if each.needs_peers] == [NATIVE]


def test_kvtier_transfer_is_the_configuration_of_the_documentation() -> None:
    transfer = kvtier_transfer(2**30, Path("/disk"), "3GiB")
    assert json.loads(json.dumps(transfer)) == {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "KVTier",
            "spec_module_path": "kvtier.connectors.vllm.spec",
            "ram": "1024MiB",
            "disk": {"path": "/disk", "capacity": "3GiB"},
        },
    }
