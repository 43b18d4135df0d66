import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvtier.cli.main import kvtier
from kvtier.testing.samples import sample_space
from tests.inspection.stores import BLOCK_BYTES, NAME, StoreFolder, keys


@pytest.fixture
def store(tmp_path: Path) -> StoreFolder:
    (tmp_path / "kv").mkdir()
    store = StoreFolder(tmp_path / "kv")
    store.fill(keys(4))
    store.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, dtype="int8"))
    return store


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KVTIER_")]:
        monkeypatch.delenv(name)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(kvtier, ["doctor", *map(str, arguments)])


def test_doctor_explains_key_spaces_of_folder(store: StoreFolder) -> None:
    ran = run(store.path)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert "cannot share: dtype differs" in ran.stdout
    assert "--kv-cache-dtype" in ran.stdout


def test_doctor_json_is_only_output(store: StoreFolder) -> None:
    ran = run(store.path, "--json")
    report = json.loads(ran.stdout)
    assert (ran.exit_code, report["ok"], report["format"]) == (0, True, 1)
    ((pair,),) = ([*family["pairs"]] for family in report["families"])
    assert (pair["one"], pair["other"], pair["verdict"]) == ("A", "B", "never")
    assert [each["field"] for each in pair["differences"]] == ["dtype"]


def test_doctor_exits_with_1_if_check_fails(store: StoreFolder) -> None:
    (store.path / NAME / "manifest.json").write_text("x")
    ran = run(store.path)
    assert ran.exit_code == 1
    assert "is damaged" in ran.stdout
    assert run(store.path / "none").exit_code == 1


def test_doctor_checks_settings_from_flags(store: StoreFolder) -> None:
    ran = run("--ram", "64MiB", "--shared", store.path)
    assert ran.exit_code == 0, ran.stdout
    assert "O_DIRECT" in ran.stdout
    assert "cannot share: dtype differs" in ran.stdout


def test_doctor_checks_settings_file(store: StoreFolder, tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text(f"ram: 64MiB\nshared: {store.path}\n")
    assert run("--config", file).exit_code == 0
    file.write_text("ram: 64MiB\nsharde: /mnt\n")
    ran = run("--config", file)
    assert ran.exit_code == 1
    assert "did you mean 'shared'?" in " ".join(ran.stdout.split())


def test_doctor_without_settings_fails() -> None:
    ran = run()
    assert ran.exit_code == 1
    assert "ram.capacity is not set" in ran.stdout


def test_doctor_refuses_places_together_with_settings(store: StoreFolder) -> None:
    ran = run(store.path, "--ram", "1GiB")
    assert ran.exit_code == 2
    assert "give either PLACEs or settings, not both" in ran.stderr
