"""`kvtier inspect`, `fsck` and `convert` on a real S3 server."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from obstore.store import S3Store

from kvtier.cli.main import kvtier
from kvtier.tiers.objectstore.store import BucketStore
from tests.conversion.foreign import TreeFolder, chain, vllm_fields
from tests.conversion.foreign import make_space as make_foreign_space
from tests.inspection.buckets import fill, name_of
from tests.inspection.stores import NAME, keys, spread
from tests.s3 import READER_KEY, READER_SECRET

SEGMENTS = 6


@pytest.fixture
def full(bucket_url: str) -> str:
    """Return a bucket with a few segments, two reads, and files of other programs."""
    store = BucketStore(bucket_url, deadline_s=60.0)
    for first in spread(SEGMENTS):
        fill(store, keys(4, int.from_bytes(first[:4], "big")))
    fill(store, keys(4), reads=2)
    store.put("readme", b"x")
    store.put("backup/1/2", b"x")
    store.put(
        f"{NAME}-b", b"x"
    )  # a server that lists by folders returns it after the files in NAME
    store.close()
    return bucket_url


def run(*arguments: str) -> Result:
    return CliRunner().invoke(kvtier, list(arguments))


def inspected(url: str) -> dict:
    ran = run("inspect", url, "--json")
    assert ran.exit_code == 0, ran.output
    survey: dict = json.loads(ran.stdout)
    return survey


def objects(client: S3Store) -> dict[str, str]:
    return {meta["path"]: meta["e_tag"] for page in client.list() for meta in page}


def test_inspect_shows_a_bucket_and_writes_nothing(
    full: str,
    bucket_client: S3Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = objects(bucket_client)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    survey = inspected(full)
    (space,) = survey["spaces"]
    assert (survey["path"], survey["file_system"]) == (full, None)
    assert (space["name"], space["blocks"], space["journals"]) == (NAME, 4 * SEGMENTS, 2)
    assert space["segments"]["physical_bytes"] == space["segments"]["nominal_bytes"]
    assert [(chain["reads"], chain["blocks"]) for chain in space["hottest"]] == [(2, 4)]
    assert {each["name"]: each["what"] for each in survey["unknown"]} == {
        "readme": "file",
        "backup": "folder",
        f"{NAME}-b": "file",
    }
    assert "hottest prefixes" in run("inspect", full).stdout
    assert objects(bucket_client) == before


def test_fsck_verifies_and_repairs_a_bucket(full: str, bucket_client: S3Store) -> None:
    broken = name_of(spread(SEGMENTS)[2])
    content = bytearray(bytes(bucket_client.get(broken).bytes()))
    content[5000] ^= 1
    bucket_client.put(broken, bytes(content))
    before = objects(bucket_client)
    ran = run("fsck", full, "--rate", "1GiB/s")
    assert ran.exit_code == 1
    assert f"problem: {broken}: blocks damaged: 0 (1 of 4)" in ran.stdout
    assert objects(bucket_client) == before, "the cursor is removed too"
    ran = run("fsck", full, "--repair", "--json")
    report = json.loads(ran.stdout)
    assert (report["segments"], report["blocks"]) == (SEGMENTS, 4 * (SEGMENTS - 1))
    assert [each["repaired"] for each in report["problems"]] == ["quarantined"]
    after = objects(bucket_client)
    assert before.keys() - after.keys() == {broken}
    (moved,) = after.keys() - before.keys()
    assert moved.startswith(f"{NAME}/quarantine/")
    assert run("fsck", full).exit_code == 0
    (quarantined,) = inspected(full)["spaces"][0]["quarantined"]
    assert quarantined["reason"] == "blocks damaged: 0 (1 of 4)"


def test_fsck_with_read_only_credentials_keeps_its_cursor_locally(
    full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    ran = run("fsck", full)
    assert ran.exit_code == 0
    assert "name another file with --resume" in ran.stderr
    ran = run("fsck", full, "--resume", str(tmp_path / "here.json"))
    assert (ran.exit_code, ran.stderr) == (0, "")
    ran = run("fsck", full, "--repair")
    assert ran.exit_code == 2
    assert "403" in ran.stderr


def test_convert_to_a_bucket_and_back(bucket_url: str, tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(chain(30))
    name = make_foreign_space(tmp_path / "kv")
    manifest = str(tmp_path / "kv" / name / "manifest.json")
    dry = run("convert", str(tree.root), bucket_url, "--manifest", manifest, "--dry-run")
    assert (dry.exit_code, "30 blocks would be" in dry.stdout) == (0, True), dry.output
    ran = run("convert", str(tree.root), bucket_url, "--manifest", manifest)
    assert (ran.exit_code, "30 blocks converted" in ran.stdout) == (0, True), ran.output
    again = run("convert", str(tree.root), bucket_url, "--space", name)
    assert "0 blocks converted" in again.stdout
    assert "30 already there" in again.stdout
    assert run("fsck", bucket_url).exit_code == 0
    back = TreeFolder(tmp_path / "back", vllm_fields())
    ran = run("convert", bucket_url, str(back.root), "--to", "vllm-fs", "--space", name)
    assert ran.exit_code == 0, ran.output
    assert back.content() == tree.content()


@pytest.mark.parametrize("command", ["inspect", "fsck"])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"url": "s3://none-such/x"}, "PATH: s3://none-such/x: there is no bucket 'none-such'"),
        ({"url": "http://host/x"}, "PATH: 'http://host/x' is not a bucket's URL"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "access is refused: give credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_bad_input_is_one_clear_line(
    full: str, command: str, change: dict[str, str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in change.items():
        if variable != "url":
            monkeypatch.setenv(variable, value)
    ran = run(command, change.get("url", full))
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert error in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert "objectstore.url" not in ran.stderr


def test_empty_prefix_holds_nothing(bucket_url: str) -> None:
    assert inspected(bucket_url)["spaces"] == []
    ran = run("fsck", bucket_url)
    assert ran.exit_code == 2
    assert f"{bucket_url} holds no key space" in ran.stderr


def test_key_space_in_place_of_a_store_is_refused(full: str) -> None:
    ran = run("inspect", f"{full}/{NAME}")
    assert ran.exit_code == 2
    assert f"name the store and the key space: {full} --space {NAME}" in ran.stderr
