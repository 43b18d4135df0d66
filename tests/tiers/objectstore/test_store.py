"""The contract over a real server, and behavior that only a bucket has."""

import errno
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from obstore.store import S3Store

from kvtier.clock import VirtualClock
from kvtier.errors import InvalidSettings
from kvtier.testing.samples import blank, content
from kvtier.testing.stores import StoreContract
from kvtier.tiers.objectstore import BucketStore
from kvtier.tiers.shared.store import Read, Store
from tests.s3 import (
    BUCKET,
    READER_KEY,
    READER_SECRET,
    SECRET_KEY,
    FaultyServer,
    Weed,
    free_ports,
)

QUICK_S = 1.0
"""A time limit for calls that are meant to exceed it."""


class TestBucketStore(StoreContract):
    @pytest.fixture(autouse=True)
    def server(self, s3: None) -> None:
        """Let `make_store` find the shared server in the environment."""

    def make_store(self, folder: Path) -> Store:
        prefix = sha256(str(folder).encode()).hexdigest()[:32]
        store = BucketStore(f"s3://{BUCKET}/{prefix}", deadline_s=60.0)
        store.check()
        return store

    def test_publish_of_one_name_by_many_succeeds_once(self, tmp_path: Path) -> None:
        """The test of the suite with fewer writers: here, each collision takes a second."""
        stores = [self.make_store(tmp_path) for _ in range(2)]
        barrier = Barrier(4)

        def publish(number: int, writer: int) -> bool:
            barrier.wait()
            return stores[writer % 2].publish(f"new/{number}", [content(writer, 1 << 20)])

        with ThreadPoolExecutor(4) as threads:
            for number in range(4):
                won = list(threads.map(publish, [number] * 4, range(4)))
                assert won.count(True) == 1
                winner = content(won.index(True), 1 << 20)
                assert self.bytes_of(stores[0], f"new/{number}") == bytes(winner)
        for store in stores:
            store.close()


@pytest.fixture
def store(bucket_url: str) -> Iterator[BucketStore]:
    store = BucketStore(bucket_url)
    store.check()
    yield store
    store.close()


def verbs(store: BucketStore) -> list[Callable[[], object]]:
    """Return calls of every method that asks the server."""
    return [
        lambda: store.publish("a/new", [content(1, 10_000)]),
        lambda: store.put("a/small", b"x"),
        lambda: store.read("a/file", 0, [blank(10)]),
        lambda: store.stat("a/file"),
        lambda: store.remove("a/other"),
        lambda: store.move("a/file", "b/file"),
        lambda: store.list("a"),
    ]


def test_check_leaves_nothing_behind(store: BucketStore, bucket_client: S3Store) -> None:
    store.publish("file", [content(1, 10)])
    assert not store.publish("file", [content(2, 10)])
    left = [meta["path"] for page in bucket_client.list() for meta in page]
    assert left == ["file"]


def test_publish_is_one_conditional_request(
    s3_owner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer("ignored").running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        store = BucketStore(f"s3://{BUCKET}")
        store.publish("file", [content(1, 6 << 20), content(2, 6 << 20)])
        store.close()
    assert server.seen == {"PUT": 1}, "a publish is one upload, however large it is"


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
def test_check_refuses_server_without_conditional_writes(
    s3_owner: None, conditions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer(conditions).running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        said = refused(f"s3://{BUCKET}/prefix")
        assert said.startswith(
            f"objectstore.url: s3://{BUCKET}/prefix: the server does not support"
        )
        assert "use a newer server" in said
    assert server.objects == {}


def test_read_from_server_without_ranges_raises(
    s3_owner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer("ignored").running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        store = BucketStore(f"s3://{BUCKET}")
        store.publish("file", [content(1, 5000)])
        buffer = blank(100)
        with pytest.raises(OSError, match="does not support reads of a range") as caught:
            store.read("file", 1000, [buffer])
        assert caught.value.errno == errno.EIO
        assert set(buffer.tolist()) == {0xEE}
        store.close()


@pytest.mark.timeout(30)
def test_read_of_truncated_answer_raises(s3_owner: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyServer("ignored").running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        store = BucketStore(f"s3://{BUCKET}", deadline_s=QUICK_S)
        store.publish("file", [content(1, 100_000)])
        server.breaks_off = True
        with pytest.raises(OSError, match="read file: ") as caught:
            store.read("file", 4096, [blank(50_000)])
        assert "range" not in str(caught.value), "this server does support ranges"
        store.close()


@pytest.mark.parametrize(
    ("status", "code", "number"),
    [
        (503, "SlowDown", errno.EBUSY),
        (429, "TooManyRequests", errno.EBUSY),
        (500, "InternalError", errno.EIO),
    ],
)
def test_busy_server_is_retried_within_the_limit(
    s3_owner: None, status: int, code: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = (status, f"<Error><Code>{code}</Code></Error>".encode())
    with FaultyServer("ignored").running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        store = BucketStore(f"s3://{BUCKET}")
        server.failures = [busy]
        assert store.publish("file", [content(1, 5000)])
        server.failures = [busy] * 20
        with pytest.raises(OSError, match=f"{status} {code}") as caught:
            store.publish("other", [content(1, 5000)])
        assert caught.value.errno == number
        assert len(server.failures) > 10, "the store retried too often"
        store.close()


def test_put_of_object_removed_meanwhile_uses_newest_time(
    s3_owner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer("ignored").running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        store = BucketStore(f"s3://{BUCKET}")
        gone = (404, b"")
        server.failures = [None, gone]
        first = store.put("file", b"bytes")
        assert (first.size, first.modified_s) == (5, 0.0)
        assert first.version
        told = store.put("file", b"bytes")
        assert told.modified_s > 1e9
        server.failures = [None, gone]
        assert store.put("other", b"bytes").modified_s == told.modified_s
        store.close()


@pytest.mark.parametrize(
    ("status", "code", "number"),
    [
        (507, "XMinioStorageFull", errno.ENOSPC),
        (409, "ConditionalRequestConflict", errno.EAGAIN),
        (403, "AccessDenied", errno.EACCES),
        (500, "InternalError", errno.EIO),
        (404, "NoSuchBucket", errno.ENODEV),
    ],
)
def test_server_errors_have_their_errno(
    s3_owner: None, status: int, code: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer("ignored").running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        store = BucketStore(f"s3://{BUCKET}")
        server.failures = [(status, f"<Error><Code>{code}</Code></Error>".encode())] * 10
        with pytest.raises(OSError, match=f"{status} {code}") as caught:
            store.publish("file", [content(1, 5000)])
        assert caught.value.errno == number
        store.close()


@pytest.mark.slow
def test_killed_server_raises_until_it_returns(own_s3: Weed) -> None:
    store = BucketStore(f"s3://{BUCKET}")
    store.check()
    part = content(1, 1 << 20)
    store.publish("a/file", [part])
    store.publish("a/other", [part])
    own_s3.kill()
    for verb in verbs(store):
        with pytest.raises(ConnectionError):
            verb()
    own_s3.start()
    buffer = blank(part.nbytes)
    assert store.read("a/file", 0, [buffer]) == Read(store.stat("a/file"), part.nbytes)
    assert np.array_equal(buffer, part)
    assert [bool(verb()) for verb in verbs(store)] == [True] * 7
    assert [entry.name for entry in store.list("").entries] == ["a/new", "a/small", "b/file"]
    store.close()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_hung_server_raises_timeout(own_s3: Weed) -> None:
    url = f"s3://{BUCKET}"
    patient, store = BucketStore(url), BucketStore(url, deadline_s=QUICK_S)
    part = content(1, 1 << 20)
    patient.publish("a/file", [part])
    patient.publish("a/other", [part])
    with own_s3.frozen(), ThreadPoolExecutor(7) as threads:
        for call in [threads.submit(verb) for verb in verbs(store)]:
            with pytest.raises(TimeoutError):
                call.result()
    buffer = blank(part.nbytes)
    read = patient.read("a/file", 0, [buffer])
    assert read is None or np.array_equal(buffer, part), "the file was neither moved away nor whole"
    patient.close()
    store.close()


class LeapingClock(VirtualClock):
    """A clock that advances three seconds at every call."""

    def now_s(self) -> float:
        self.advance(3.0)
        return super().now_s()


def test_endless_listing_raises_timeout(bucket_url: str, store: BucketStore) -> None:
    """Each answer arrives in time, but there are too many of them."""
    for number in range(3):
        store.put(f"{number}/file", b"x")
    hasty = BucketStore(bucket_url, deadline_s=10.0, clock=LeapingClock())
    assert len(hasty.list("").entries) == 3, "three seconds are enough for one answer"
    hasty.check()
    with pytest.raises(TimeoutError, match="took too long"):
        hasty.list("")
    hasty.close()


def test_slow_page_is_returned_short(bucket_url: str, store: BucketStore) -> None:
    """The names found in time are returned, and the next page continues after them."""
    names = [f"{folder}/{file}" for folder in range(6) for file in range(2)]
    for name in names:
        store.put(name, b"x")

    class SlowClock(VirtualClock):
        """A clock that advances two seconds at every call: enough for four answers."""

        def now_s(self) -> float:
            self.advance(2.0)
            return super().now_s()

    slow = BucketStore(bucket_url, deadline_s=20.0, clock=SlowClock())
    slow.check_readable()
    found, after, pages = [], "", 0
    while after is not None:
        page = slow.list("", after)
        found += [entry.name for entry in page.entries]
        after, pages = page.after, pages + 1
    slow.close()
    assert found == names
    assert pages > 1


def test_check_readable_writes_nothing_and_lists_in_order(
    bucket_url: str, store: BucketStore, bucket_client: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists in the order of whole names, although this server lists by folders."""
    for name in ("a/b", "a-b", "c"):
        store.put(name, b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    reader = BucketStore(bucket_url, deadline_s=60.0)
    reader.check_readable()
    assert [entry.name for entry in reader.list("").entries] == ["a-b", "a/b", "c"]
    assert [entry.name for entry in reader.list("", "a/~").entries] == ["c"]
    reader.close()
    absent = BucketStore("s3://none-such")
    with pytest.raises(InvalidSettings, match="there is no bucket 'none-such'"):
        absent.check_readable()
    absent.close()


def test_closed_store_raises_ebadf(store: BucketStore) -> None:
    store.close()
    store.close()
    for verb in verbs(store):
        with pytest.raises(OSError, match="closed") as caught:
            verb()
        assert caught.value.errno == errno.EBADF


def refused(url: str) -> str:
    """Return the message with which `check` refuses the bucket."""
    with pytest.raises(InvalidSettings) as caught:
        BucketStore(url).check()
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_missing_bucket_is_named(s3: None) -> None:
    assert refused("s3://no-such-bucket/prefix").startswith(
        "objectstore.url: s3://no-such-bucket/prefix: there is no bucket 'no-such-bucket': create"
    )
    store = BucketStore("s3://no-such-bucket")
    for verb in (lambda: store.publish("a", [content(1, 10)]), lambda: store.put("a", b"x")):
        with pytest.raises(OSError, match="NoSuchBucket"):
            verb()
    with pytest.raises(OSError, match="NoSuchBucket"):
        store.read("a", 0, [blank(10)])
    store.close()


def test_refused_credentials_name_the_fix(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-" + SECRET_KEY)
    said = refused(bucket_url)
    assert "access is refused: give credentials" in said
    assert "AWS_ACCESS_KEY_ID" in said
    assert SECRET_KEY not in said


def test_credentials_without_write_access_are_refused(
    bucket_url: str, store: BucketStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish("file", [content(1, 10)])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    assert "may list, read, write and delete" in refused(bucket_url)
    reader = BucketStore(bucket_url)
    assert reader.read("file", 0, [blank(10)]) == Read(store.stat("file"), 10)
    with pytest.raises(PermissionError):
        reader.publish("other", [content(1, 10)])
    reader.close()


def test_unreachable_endpoint_is_named(s3_owner: None, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    said = refused(f"s3://{BUCKET}")
    assert f"AWS_ENDPOINT_URL={endpoint} cannot be reached" in said
    assert "Connection refused" in said


def test_credentials_are_read_from_a_file(
    bucket_url: str, store: BucketStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        f"[cache]\naws_access_key_id = {READER_KEY}\naws_secret_access_key = {READER_SECRET}\n"
    )
    store.publish("file", [content(1, 10)])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "cache")
    reader = BucketStore(bucket_url)
    assert reader.read("file", 0, [blank(10)]) == Read(store.stat("file"), 10)
    with pytest.raises(PermissionError):
        reader.publish("other", [content(1, 10)])
    reader.close()
