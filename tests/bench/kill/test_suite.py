from pathlib import Path

import numpy as np
from rich.console import Console

from kvtier.tiers.base import BlockMove
from kvtier.tiers.shared.reading import aligned_buffer
from kvtier_bench.kill.roles import LAYOUT, SharedCounters, chain_keys, log_path, open_tier, payload
from kvtier_bench.kill.suite import KILLS, RUN_ROLES, Leftovers, examine, published, run, verdicts
from kvtier_bench.rows import read_report

CLEAN = Leftovers(published=5, lost=0, wrong=0, orphans=2, orphans_left=0, quarantined=0)


def store(folder: Path, chain: int, blocks: int) -> Path:
    """Publish the beginning of a chain, and return its file."""
    keys = chain_keys(chain)[:blocks]
    room = aligned_buffer(blocks * LAYOUT.slot_bytes).reshape(blocks, LAYOUT.slot_bytes)
    for i, key in enumerate(keys):
        room[i, : LAYOUT.block_bytes] = payload(key)
    tier = open_tier(folder)
    moves = [BlockMove(key, room[i]) for i, key in enumerate(keys)]
    tier.write_from(moves, [None, *keys[:-1]])
    tier.close()
    (file,) = (folder / "kv").glob(f"*/blocks/*/{keys[0].hex()}.kvt")
    return file


def test_short_kill_run_meets_all_rows_but_the_number_of_kills(tmp_path: Path) -> None:
    path, scratch = tmp_path / "kill.json", tmp_path / "scratch"
    with (tmp_path / "out").open("w") as out:
        rows = run(path, scratch, Console(file=out), kills=6, roles=RUN_ROLES, pause_s=(0.01, 0.1))
    judged = {row.name: row for row in rows}
    assert not judged.pop("kills").met, "six kills must be too few"
    assert all(row.met for row in judged.values())
    report = read_report(path)
    assert report.kind == "kill"
    assert report.details["done"] > 0


def test_incomplete_line_of_a_log_is_ignored(tmp_path: Path) -> None:
    log_path(tmp_path, 0).write_text("3 2\n4 1\n3 1\n4 6")
    log_path(tmp_path, 2).write_text("3 5\n")
    assert published(tmp_path, [0, 1, 2]) == {3: 5, 4: 1}


def test_intact_published_blocks_are_neither_lost_nor_wrong(tmp_path: Path) -> None:
    store(tmp_path, 1, 3)
    log_path(tmp_path, 0).write_text("1 3\n")
    assert examine(tmp_path, [0]) == Leftovers(3, 0, 0, 0, 0, 0)


def test_missing_published_blocks_are_lost(tmp_path: Path) -> None:
    store(tmp_path, 1, 3).unlink()
    store(tmp_path, 2, 2)
    log_path(tmp_path, 0).write_text("1 3\n2 2\n")
    assert examine(tmp_path, [0]).lost == 3


def test_damaged_file_is_lost_and_quarantined(tmp_path: Path) -> None:
    file = store(tmp_path, 1, 2)
    raw = np.frombuffer(file.read_bytes(), np.uint8).copy()
    raw[5000] ^= np.uint8(1)
    file.write_bytes(raw.tobytes())
    log_path(tmp_path, 0).write_text("1 2\n")
    leftovers = examine(tmp_path, [0])
    assert leftovers.lost >= 1
    assert leftovers.quarantined == 1


def test_temporary_files_are_counted_and_removed(tmp_path: Path) -> None:
    file = store(tmp_path, 1, 2)
    tier = open_tier(tmp_path)
    name = tier._store._temporaries._names.next("x").rpartition("/")[2]  # type: ignore[attr-defined]
    tier.close()
    orphan = file.parent / name
    orphan.write_bytes(b"half a file")
    leftovers = examine(tmp_path, [])
    assert (leftovers.orphans, leftovers.orphans_left) == (1, 0)
    assert not orphan.exists()


def test_verdicts_miss_for_each_violation() -> None:
    counters = SharedCounters()
    assert all(row.met for row in verdicts(counters, CLEAN, KILLS, 0))
    for spoilt in (
        verdicts(counters, CLEAN._replace(lost=1), KILLS, 0),
        verdicts(counters, CLEAN._replace(wrong=1), KILLS, 0),
        verdicts(counters, CLEAN._replace(quarantined=1), KILLS, 0),
        verdicts(counters, CLEAN._replace(orphans_left=1), KILLS, 0),
        verdicts(counters, CLEAN, KILLS - 1, 0),
        verdicts(counters, CLEAN, KILLS, 1),
    ):
        assert [row.met for row in spoilt].count(False) == 1
    counters.add("wrong")
    assert not all(row.met for row in verdicts(counters, CLEAN, KILLS, 0))
