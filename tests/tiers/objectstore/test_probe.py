import pytest
from obstore.store import MemoryStore, S3Store

from kvtier.tiers.objectstore.probe import Manners, probe
from tests.tiers.objectstore.servers import OldServer, plain_client


def test_seaweedfs_honours_conditions_and_lists_by_folders(client: S3Store) -> None:
    client.put("neighbour", b"x")
    assert probe(client) == Manners(conditional=True, sorted_names=False)
    assert [meta["path"] for page in client.list() for meta in page] == ["neighbour"]


def test_a_server_as_it_should_be() -> None:
    client = MemoryStore()
    client.put("neighbour", b"x")
    client.put(".a", b"x")
    client.put(".z", b"x")
    assert probe(client) == Manners()  # type: ignore[arg-type]
    left = [meta["path"] for page in client.list() for meta in page]
    assert sorted(left) == [".a", ".z", "neighbour"]


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
def test_old_servers(owner: None, conditions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with OldServer(conditions).running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        client = plain_client("prefix")
        assert probe(client) == Manners(conditional=False)
        assert server.objects == {}


def test_a_server_that_refuses_is_an_error(owner: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with OldServer("ignored").running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        client = plain_client("prefix")
        server.failures = [(403, b"<Error><Code>AccessDenied</Code></Error>")]
        with pytest.raises(PermissionError, match="probe: the server said 403 AccessDenied"):
            probe(client)
