import importlib.metadata
from pathlib import Path

import pytest

from kvtier import settings
from kvtier.diagnosis.examination import ram_check, seed_check, settings_check, version_checks
from kvtier.diagnosis.report import Status
from kvtier.settings import RamSettings
from tests.settings.test_machine import GIB, describe


def test_settings_check_lists_values_and_sources(tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text("ram: 2GiB\n")
    resolved = settings.resolve(file=str(file), env={"KVTIER_SHARED": "/mnt/kv"})
    check = settings_check(resolved)
    assert check.status is Status.OK
    assert check.told == (f"ram.capacity 2GiB ({file} line 1); shared.path /mnt/kv (KVTIER_SHARED)")


@pytest.mark.parametrize(
    ("capacity_bytes", "status", "expected"),
    [
        (20 * GIB, Status.OK, "20.0GiB of the 30.0GiB"),
        (25 * GIB, Status.WARN, "is free on this machine now"),
        (31 * GIB, Status.FAIL, "the memory limit of this container"),
        (33 * GIB, Status.FAIL, "that this machine has"),
    ],
)
def test_ram_check_compares_with_the_machine(
    tmp_path: Path, capacity_bytes: int, status: Status, expected: str
) -> None:
    probes = describe(tmp_path, memoryDOTmax=str(30 * GIB))
    check = ram_check(RamSettings(capacity=capacity_bytes), probes)
    assert (check.topic, check.status) == ("ram.capacity", status)
    assert expected in check.told


def test_ram_check_warns_if_little_memory_is_left(tmp_path: Path) -> None:
    check = ram_check(
        RamSettings(capacity=19 * GIB), describe(tmp_path, memoryDOTmax=str(20 * GIB))
    )
    assert (check.status, check.fix) == (Status.WARN, "Make it smaller.")


def test_ram_check_without_known_memory(tmp_path: Path) -> None:
    probes = describe(tmp_path)
    probes.meminfo.unlink()
    assert ram_check(RamSettings(capacity=2**60), probes).status is Status.OK


def versions_with(vllm: str | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Status]:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name.startswith("vllm"):
            if vllm is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return vllm
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return {check.topic: check.status for check in version_checks()}


@pytest.mark.parametrize(
    ("vllm", "status"), [("0.32.1", Status.OK), ("0.31.0", Status.FAIL), (None, Status.WARN)]
)
def test_version_checks_report_vllm(
    vllm: str | None, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = versions_with(vllm, monkeypatch)
    assert found == {"versions": Status.OK, "vllm": status}


def test_seed_check_reports_pythonhashseed() -> None:
    assert "7 here" in seed_check({"PYTHONHASHSEED": "7"}).told
    assert "xxhash" in seed_check({}).told
