import msgspec
import pytest

from kvtier.evictor.table import Columns, Table, Use


def sample() -> Table:
    table = Table()
    for number, name in enumerate([b"abc", b"", b"defgh"]):
        table.add(name, 10 * number, float(number), float(number))
    return table


def test_rows_round_trip() -> None:
    table = sample()
    assert [table.name(row) for row in range(len(table))] == [b"abc", b"", b"defgh"]
    assert table.physical().tolist() == [0, 10, 20]


def test_update_uses_keeps_latest_time() -> None:
    table = sample()
    uses = {b"abc": Use(50.0, 3), b"defgh": Use(1.0, 1), b"other": Use(9.0, 1)}
    for _ in range(2):
        table.update_uses(uses)
        assert table.recency().tolist() == [50.0, 1.0, 2.0]
        assert table.used.tolist() == [3, 0, 1]
    table.update_uses({})
    assert table.recency().tolist() == [50.0, 1.0, 2.0]


def test_columns_round_trip() -> None:
    raw = msgspec.msgpack.encode(sample().columns())
    again = Table.of(msgspec.msgpack.decode(raw, type=Columns))
    assert again.columns() == sample().columns()
    assert Table.of(Table().columns()).columns() == Table().columns()


@pytest.mark.parametrize(
    "change",
    [
        {"ends": [3, 3]},
        {"ends": [3, 2, 8]},
        {"ends": [3, 3, 9]},
        {"sizes": [-1, 0, 0]},
        {"sizes": [1]},
        {"written": []},
        {"names": b""},
    ],
)
def test_table_rejects_inconsistent_columns(change: dict[str, object]) -> None:
    columns = msgspec.structs.replace(sample().columns(), **change)
    with pytest.raises(ValueError):  # noqa: PT011
        Table.of(columns)
