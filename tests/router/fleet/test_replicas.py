import asyncio
import os
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.fleet.replicas import (
    FileDiscovery,
    Replica,
    StaticDiscovery,
    distinct,
    parse_replica,
    read_replicas,
)


def test_replica_flag_sets_address_models_name_and_labels() -> None:
    replica = parse_replica("http://Host:8000,model=m,model=n,name=a,label=zone:eu", "--replica")
    assert replica == Replica(
        name="a", url="http://host:8000", models=frozenset("mn"), labels={"zone": "eu"}
    )
    assert replica.address == "host:8000"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://h", "h:80"),
        ("https://h/", "h:443"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("https://10.0.0.1:1", "10.0.0.1:1"),
    ],
)
def test_replica_without_name_is_named_by_its_address(text: str, address: str) -> None:
    replica = parse_replica(text, "--replica")
    assert (replica.name, replica.address) == (address, address)


@pytest.mark.parametrize(
    "text",
    [
        *("", "h:8000", "ftp://h", "http://", "http://h:x", "http://h:70000", "http://u:p@h"),
        *("http://h/v1", "http://h?a=b", "http://h,nam=a", "http://h,name=", "http://h,label=x"),
        "http://h,name=a,name=b",
    ],
)
def test_invalid_replica_is_an_error_naming_the_flag(text: str) -> None:
    with pytest.raises(InvalidSettings, match="--replica"):
        parse_replica(text, "--replica")


def test_replicas_file_accepts_list_or_mapping(tmp_path: Path) -> None:
    file = tmp_path / "replicas.yaml"
    file.write_text("replicas: ['http://a:1', 'http://b:1,model=m']")
    assert [replica.name for replica in read_replicas(str(file))] == ["a:1", "b:1"]
    file.write_text(
        "replicas:\n  a: http://a:1\n  b: {url: http://b:1, models: [m, n], labels: {zone: 3}}\n"
    )
    a, b = read_replicas(str(file))
    assert (a.name, a.url) == ("a", "http://a:1")
    assert (b.models, b.labels) == (frozenset("mn"), {"zone": "3"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write `replicas:"),
        ("replica: []", "line 1: unknown setting 'replica'"),
        ("replicas: 5", "write `replicas:"),
        ("replicas: [5]", "write `replicas:"),
        ("replicas: {a: {}}", "line 1: a: write url:"),
        ("replicas:\n  a: {url: 'http://a', model: m}", "line 2: unknown setting 'model'"),
        ("replicas:\n  a: {url: 'http://a', models: m}", "line 2: write models:"),
        ("replicas:\n  a: {url: 'http://a', labels: m}", "line 2: write labels:"),
        ("replicas:\n  a: nonsense", "line 2: a: 'nonsense'"),
        ("replicas: ['http://a', 'http://a']", "is listed twice"),
    ],
)
def test_invalid_replicas_file_is_an_error_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "replicas.yaml"
    file.write_text(text)
    with pytest.raises(InvalidSettings) as caught:
        read_replicas(str(file))
    assert said in str(caught.value)
    assert "replicas.yaml" in str(caught.value)


def test_replicas_with_equal_names_or_addresses_are_rejected() -> None:
    one = Replica(name="a", url="http://h:1")
    with pytest.raises(InvalidSettings, match="h:1 is listed twice"):
        distinct([one, Replica(name="b", url="http://h:1")], "here")
    with pytest.raises(InvalidSettings, match="a is listed twice"):
        distinct([one, Replica(name="a", url="http://h:2")], "here")


def test_static_discovery_yields_its_set_once() -> None:
    async def told() -> list[list[str]]:
        fixed = StaticDiscovery([Replica(name="a", url="http://a:1")])
        return [[replica.name for replica in found] async for found in fixed.watch()]

    assert asyncio.run(told()) == [["a"]]


def test_file_discovery_rereads_changed_file_and_ignores_invalid_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "replicas.yaml"

    def write(text: str) -> None:
        new = tmp_path / "new"
        new.write_text(text)
        os.replace(new, file)

    async def watched() -> None:
        write("replicas: ['http://b:1']")
        listed = FileDiscovery(str(file), [Replica(name="a", url="http://a:1")], poll_s=0.01)
        sets = listed.watch()
        assert [replica.name for replica in await anext(sets)] == ["a", "b:1"]
        later = asyncio.ensure_future(anext(sets))
        for broken in ("", "replicas: [", "replicas: ['http://a:1']", "replicas: ['http://b:1'] "):
            write(broken)
            await asyncio.sleep(0.03)
            assert not later.done(), broken
        file.unlink()
        await asyncio.sleep(0.03)
        assert not later.done()
        write("replicas: []")
        assert [replica.name for replica in await later] == ["a"]

    asyncio.run(watched())


def test_file_discovery_without_file_is_an_error(tmp_path: Path) -> None:
    async def first() -> None:
        await anext(FileDiscovery(str(tmp_path / "none.yaml")).watch())

    with pytest.raises(InvalidSettings, match=r"none\.yaml"):
        asyncio.run(first())
