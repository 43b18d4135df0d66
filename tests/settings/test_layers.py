from collections.abc import Mapping
from pathlib import Path

import pytest

from kvtier import settings
from kvtier.errors import InvalidSettings
from kvtier.settings import DiskSettings, RamSettings, Settings, TransferSettings

GIB = 2**30


def test_ram_size_is_only_required_setting() -> None:
    assert settings.load({"ram": "20GiB"}, env={}) == Settings(ram=RamSettings(capacity=20 * GIB))


def test_long_and_short_forms_are_equal() -> None:
    short = settings.load({"ram": "1GiB", "disk": "/x=2GiB"}, env={})
    long = settings.load(
        {"ram": {"capacity": GIB}, "disk": {"path": "/x", "capacity": "2GiB"}}, env={}
    )
    assert short == long
    assert short.disk == DiskSettings(path="/x", capacity=2 * GIB)


def test_later_source_overrides_each_value(tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text(
        "ram: {capacity: 1GiB, eviction: arc, admission: second_touch}\n"
        "disk: /file=1GB\ntransfer:\n  drain: 9s\n"
    )
    env = {"KVTIER_RAM": "2GiB", "KVTIER_DISK_PATH": "/env", "KVTIER_TRANSFER_DRAIN": "8s"}
    resolved = settings.resolve(
        {"disk": {"capacity": "3GB"}, "transfer": {"drain": "7s"}},
        env={**env, "KVTIER_CONFIG": str(file)},
        flags={"--transfer-drain": "6s"},
    )
    assert resolved.settings == Settings(
        ram=RamSettings(capacity=2 * GIB, eviction="arc", admission="second_touch"),
        disk=DiskSettings(path="/env", capacity=3 * 10**9),
        transfer=TransferSettings(drain=6.0),
    )
    origins = {name: found.origin for name, found in resolved.values.items()}
    assert origins["ram.capacity"] == "KVTIER_RAM"
    assert origins["ram.eviction"] == f"{file} line 1"
    assert origins["disk.path"] == "KVTIER_DISK_PATH"
    assert origins["disk.capacity"] == "kv_connector_extra_config"
    assert origins["transfer.drain"] == "--transfer-drain"
    assert origins["transfer.queue_blocks"] == "default"


@pytest.mark.parametrize("off", [None, "none"])
def test_later_source_can_switch_disk_off(off: object) -> None:
    env = {"KVTIER_DISK": "/x=1GB", "KVTIER_DISK_IO_THREADS": "8"}
    assert settings.load({"ram": 1, "disk": off}, env=env).disk is None
    assert settings.load({"ram": 1}, env=env).disk is not None


def test_file_argument_overrides_config_variable(tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text("ram: 3\n")
    env = {"KVTIER_CONFIG": "/nowhere.yaml"}
    assert settings.load(env=env, file=str(file)).ram.capacity == 3


def test_vllm_keys_are_accepted() -> None:
    found = settings.load({"spec_name": "KVTier", "cpu_bytes_to_use": 4 * GIB}, env={})
    assert found.ram.capacity == 4 * GIB


def test_variables_of_kubernetes_service_are_ignored() -> None:
    env = {
        "KVTIER_SERVICE_HOST": "10.0.0.1",
        "KVTIER_SERVICE_PORT_HTTP": "80",
        "KVTIER_PORT": "tcp://10.0.0.1:80",
        "KVTIER_ROUTER_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert settings.load({"ram": 1}, env=env) == Settings(ram=RamSettings(capacity=1))


def test_variables_of_router_are_ignored() -> None:
    env = {"KVTIER_ROUTE_PORT": "30080", "KVTIER_ROUTE_API_KEY": "secret"}
    assert settings.load({"ram": 1}, env=env) == Settings(ram=RamSettings(capacity=1))


@pytest.mark.parametrize(
    ("mapping", "env", "fragments"),
    [
        ({}, {}, ["ram.capacity is not set", "--ram 20GiB", "KVTIER_RAM=20GiB"]),
        ({"ram": "20G"}, {}, ["kv_connector_extra_config: ram: '20G'", "20GB"]),
        ({}, {"KVTIER_RAM": "lots"}, ["KVTIER_RAM: 'lots' is not a size", "64GiB"]),
        ({"ram": 1, "dsk": 1}, {}, ["unknown setting 'dsk'", "did you mean 'disk'?"]),
        ({"ram": {"capacty": 1}}, {}, ["'ram.capacty'", "did you mean 'capacity'?"]),
        ({"ram": 1, "zzz": 1}, {}, ["unknown setting 'zzz'", "known are ram, disk"]),
        ({"ram": 1, 7: 1}, {}, ["unknown setting 7"]),
        (
            {"ram": 1},
            {"KVTIER_DISK_IO_THREAD": "1"},
            ["unknown variable KVTIER_DISK_IO_THREAD;", "did you mean 'KVTIER_DISK_IO_THREADS'?"],
        ),
        (
            {"ram": 1},
            {"KVTIER_DISK_IO_THREADS": "1"},
            ["disk.path is not set, although KVTIER_DISK_IO_THREADS", "--disk /path=100GiB"],
        ),
        ({"ram": 1, "disk": {"path": "/x"}}, {}, ["disk.capacity is not set"]),
        (
            {},
            {"KVTIER_RAM": "1", "KVTIER_RAM_CAPACITY": "2"},
            ["KVTIER_RAM_CAPACITY: ram.capacity is set by KVTIER_RAM as well", "keep one"],
        ),
        ({"ram": {"capacity": 1, "eviction": "lur"}}, {}, ["ram.eviction:", "'lur'", "lru"]),
        ({"ram": 1}, {"KVTIER_RAM_ADMISSION": "x"}, ["KVTIER_RAM_ADMISSION:", "always"]),
        ({"ram": None}, {}, ["ram: None is not a size"]),
        ({"ram": 1, "shared": {}}, {}, ["shared sets nothing; write /mnt/kv, or none"]),
        ({"ram": 1, "objectstore": {}}, {}, ["objectstore sets nothing; write s3://"]),
        ({"ram": 1, "shared": {"recheck": "1s"}}, {}, ["shared.path is not set", "/mnt/kv"]),
        (
            {"ram": 1, "shared": {"path": "/kv", "recheck": "-1s"}},
            {},
            ["shared.recheck: '-1s' is not a duration; write 250ms"],
        ),
        (
            {"ram": 1},
            {"KVTIER_SHARED_DURABILITY": "always"},
            ["KVTIER_SHARED_DURABILITY: 'always' is not one of none, fdatasync, fsync"],
        ),
        (
            {"ram": 1, "objectstore": {"url": "s3://b", "known_blocks": 1}},
            {},
            ["objectstore.known_blocks: 1 is too small; the minimum is 64"],
        ),
        (
            {"ram": 1, "objectstore": 5},
            {},
            ["objectstore: 5 is not a valid url; write for example s3://"],
        ),
    ],
)
def test_bad_input_is_refused_with_place_and_fix(
    mapping: Mapping[str, object], env: Mapping[str, str], fragments: list[str]
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        settings.load(mapping, env=env)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_error_in_file_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text("ram: 1GiB\ndisk:\n  path: /x\n  capacity: plenty\n")
    with pytest.raises(InvalidSettings, match=f"{file} line 4: disk.capacity: 'plenty'"):
        settings.load(env={}, file=str(file))
    file.write_text("ram: 1GiB\ndisk:\n  pth: /x\n")
    with pytest.raises(InvalidSettings, match=f"{file} line 3: unknown setting 'disk.pth'"):
        settings.load(env={}, file=str(file))
