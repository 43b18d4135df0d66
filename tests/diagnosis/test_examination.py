import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier import settings
from kvtier.diagnosis import examination
from kvtier.diagnosis.examination import examine, examine_places
from kvtier.diagnosis.report import Check, Diagnosis, Status, fine
from kvtier.errors import InvalidSettings
from kvtier.testing.samples import sample_space
from tests.inspection.stores import BLOCK_BYTES, StoreFolder, key_file, keys


def silent(place: str) -> None:
    del place


def examined(**flags: str) -> Diagnosis:
    given = {f"--{name.replace('_', '-')}": text for name, text in flags.items()}
    return examine(settings.resolve(env={}, flags=given), silent)


def bad(report: Diagnosis) -> dict[str, str]:
    return {each.topic: each.told for each in report.checks if each.status is Status.FAIL}


@pytest.fixture
def store(tmp_path: Path) -> StoreFolder:
    (tmp_path / "kv").mkdir()
    return StoreFolder(tmp_path / "kv")


def test_examine_places_compares_places_with_each_other(store: StoreFolder, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    store.fill(keys(4))
    StoreFolder(tmp_path / "other").fill(
        keys(4), sample_space(block_bytes=BLOCK_BYTES, dtype="int8")
    )
    asked: list[str] = []
    places = [str(store.path), str(tmp_path / "other")]
    report = examine_places(places, asked.append)
    assert report.ok
    assert asked == places
    assert [pair.conclusion for pair in report.families[0].pairs] == ["cannot share: dtype differs"]


def test_missing_place_does_not_hide_others(store: StoreFolder) -> None:
    store.fill(keys(4))
    report = examine_places([str(store.path / "none"), str(store.path)], silent)
    assert not report.ok
    assert "does not exist" in bad(report)[str(store.path / "none")]
    assert len(report.families) == 1


def test_examine_checks_settings_and_their_storage(store: StoreFolder, tmp_path: Path) -> None:
    store.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, hash_seed="random 1"))
    report = examined(ram="64MiB", disk=f"{tmp_path}/disk=1MiB", shared=str(store.path))
    assert report.ok, bad(report)
    topics = [check.topic for check in report.checks]
    assert topics[:2] == ["settings", "versions"]
    assert {"vllm", "PYTHONHASHSEED", "disk.path", "shared.path", "key space A"} <= set(topics)
    assert len(report.families) == 1


def test_invalid_settings_are_one_failure_among_other_checks() -> None:
    report = examine(InvalidSettings("ram.capacity is not set"), silent)
    assert bad(report) == {"settings": "ram.capacity is not set"}
    assert "versions" in [check.topic for check in report.checks]


def test_failed_place_does_not_hide_other_checks(tmp_path: Path) -> None:
    report = examined(
        ram="64MiB", disk=f"{tmp_path}/none/x=1MiB", shared=str(tmp_path), objectstore="s3://a@b"
    )
    assert set(bad(report)) == {"disk.path", "objectstore.url"}
    assert not report.ok


def test_different_secret_is_a_warning(store: StoreFolder, tmp_path: Path) -> None:
    store.fill(keys(4))
    report = examined(ram="64MiB", shared=str(store.path), shared_key_file=str(key_file(tmp_path)))
    (check,) = (each for each in report.checks if "different secret" in each.told)
    assert (check.topic, check.status) == ("shared.key_file", Status.WARN)


def test_storage_that_hangs_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = threading.Event()

    def hanging(shared: settings.SharedSettings) -> Iterator[Check]:
        del shared
        yield fine("shared.path", "began")
        woken.wait(60)

    monkeypatch.setattr("kvtier.diagnosis.storage.shared_checks", hanging)
    given = {"--ram": "64MiB", "--shared": "/"}
    try:
        report = examine(settings.resolve(env={}, flags=given), silent, answer_s=0.05)
    finally:
        woken.set()
    assert bad(report) == {"shared.path": "no answer within 0.05 s"}
    assert "began" in [check.told for check in report.checks]


def test_place_that_hangs_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = threading.Event()
    monkeypatch.setattr(examination, "read_place", lambda place: woken.wait(60))
    try:
        report = examine_places(["/dead"], silent, answer_s=0.05)
    finally:
        woken.set()
    assert bad(report) == {"/dead": "no answer within 0.05 s"}
