"""`kvtier evict` on a real S3 server."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from kvtier.cli.main import kvtier
from kvtier.evictor.opening import open_store
from kvtier.tiers.objectstore.store import BucketStore
from tests.evictor.scenes import TREE, below, block

pytest.importorskip("obstore")


def test_bucket_is_evicted_by_bounds_and_recency(bucket_url: str) -> None:
    assert open_store(bucket_url).owner == "objectstore"
    store = BucketStore(bucket_url)
    for number in range(40):
        assert store.publish(block(number), [np.zeros(10_000, np.uint8)])
    store.put(f"{TREE}/access/x-00000001.log", "".join(f"{below(n)}\n" for n in range(5)).encode())
    store.put("stranger", b"x")
    flags = ["--high", "300000B", "--low", "200000B", "--once", "--json", "--grace", "0s"]
    dry = CliRunner().invoke(kvtier, ["evict", bucket_url, *flags, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    ran = CliRunner().invoke(kvtier, ["evict", bucket_url, *flags])
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert 15 <= report["freed_files"] <= 22
    assert abs(json.loads(dry.stdout)["freed_files"] - report["freed_files"]) <= 2
    assert report["unknown"] == ["stranger"]
    left = {entry.name for entry in store.list(f"{TREE}/blocks").entries}
    assert len(left) == 40 - report["freed_files"]
    store.close()


def test_bucket_rejects_percentage(bucket_url: str) -> None:
    ran = CliRunner().invoke(kvtier, ["evict", bucket_url, "--high", "85%", "--once"])
    assert (ran.exit_code, "and a bucket has none" in ran.output) == (2, True)


@pytest.mark.parametrize(
    ("variables", "place", "named"),
    [
        ({}, "s3://no-such-bucket/kv", "no-such-bucket"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, None, "refused"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, None, "cannot be reached"),
    ],
)
def test_bucket_that_is_unusable_is_one_line_error(
    bucket_url: str,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    place: str | None,
    named: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    flags = ["--high", "1GiB", "--once", "--delete-unknown"]
    ran = CliRunner().invoke(kvtier, ["evict", place or bucket_url, *flags])
    assert ran.exit_code == 2
    assert ran.output.startswith(f"error: PATH: {place or bucket_url}")
    assert named in ran.output
    assert len(ran.output.splitlines()) == 1
