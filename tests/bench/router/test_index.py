from kvtier_bench.router import index as bench


def test_index_rows_have_their_units_and_targets(monkeypatch) -> None:
    monkeypatch.setattr(bench, "_ROUNDS", 3)
    rows = bench.measure_router_index(entries=1600)
    units = ["bytes", "ms", "us", "us", "us", "ms", "ms", "us", "us", "blocks/s"]
    assert [row.unit for row in rows] == units
    assert [row.target for row in rows] == [
        "<= 250",
        "<= 1",
        *["<= 50"] * 3,
        "<= 3",
        None,
        "<= 60",
        None,
        ">= 50000",
    ]
    assert all(row.value > 0 for row in rows[1:])
    assert len({row.name for row in rows}) == len(rows)
