import pytest
from obstore.store import MemoryStore, S3Store

from kvtier.tiers.objectstore.server import check_conditional_writes, lists_whole_names
from tests.s3 import FaultyServer, plain_client


def names(client: S3Store | MemoryStore) -> list[str]:
    return sorted(meta["path"] for page in client.list() for meta in page)


def test_probes_of_seaweedfs(bucket_client: S3Store) -> None:
    bucket_client.put("neighbour", b"x")
    check_conditional_writes(bucket_client)
    assert not lists_whole_names(bucket_client)
    assert names(bucket_client) == ["neighbour"]


def test_probes_of_a_conforming_server() -> None:
    client = MemoryStore()
    for name in ("neighbour", ".a", ".z"):
        client.put(name, b"x")
    check_conditional_writes(client)  # type: ignore[arg-type]
    assert lists_whole_names(client)  # type: ignore[arg-type]
    assert names(client) == [".a", ".z", "neighbour"]


@pytest.mark.parametrize(
    ("conditions", "said"),
    [("ignored", "the server ignored If-None-Match"), ("refused", "501 NotImplemented")],
)
def test_probe_refuses_servers_without_conditional_writes(
    s3_owner: None, conditions: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer(conditions).running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        with pytest.raises(OSError, match=f"probe: .*{said}"):
            check_conditional_writes(plain_client("prefix"))
        assert server.objects == {}


def test_probe_raises_errors_of_the_server(s3_owner: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyServer("ignored").running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        client = plain_client("prefix")
        for probe in (check_conditional_writes, lists_whole_names):
            server.failures = [(403, b"<Error><Code>AccessDenied</Code></Error>")]
            with pytest.raises(PermissionError, match="probe: the server said 403 AccessDenied"):
                probe(client)
