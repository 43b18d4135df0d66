"""The fault matrix counts each kind of defect that is put into a tier."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.blocks.checksum import Payload, Xxh3
from kvtier.blocks.key import BlockKey
from kvtier.tiers.shared.tier import StoreTier
from kvtier_bench.faults.cell import VERBS, Cell, Verb, run_cell
from kvtier_bench.faults.core import run_core
from kvtier_bench.faults.faults import FaultKind, Faults
from kvtier_bench.faults.places import FaultPlace, FolderPlace, ObjectPlace
from kvtier_bench.faults.tally import Tally

KINDS = ("folder", "object")


class Blind(Xxh3):
    """A checksum algorithm in which every payload has the same checksum."""

    def block(self, key: BlockKey, payload: Payload) -> bytes:
        return bytes(16)


def place_on(kind: str, folder: Path, checksum: Xxh3 | None = None) -> FaultPlace:
    faults = Faults(1)
    if kind == "folder":
        return FolderPlace(folder, faults, checksum)
    return ObjectPlace("object", faults, checksum=checksum)


def cells() -> Iterator[Any]:
    """Yield every cell; those that are not slow have each fault once, and every verb and kind."""
    for number, fault in enumerate(FaultKind):
        for verb in VERBS:
            for kind in KINDS:
                is_sample = (kind, verb) == (
                    KINDS[number % len(KINDS)],
                    VERBS[number % len(VERBS)],
                )
                yield pytest.param(
                    kind, verb, fault, marks=() if is_sample else (pytest.mark.slow,)
                )


@pytest.mark.parametrize(("kind", "verb", "fault"), list(cells()))
def test_cell_counts_its_operations_and_finds_no_violation(
    tmp_path: Path, kind: str, verb: Verb, fault: FaultKind
) -> None:
    tally = run_cell(place_on(kind, tmp_path), verb, fault, 12)
    assert tally.operations == 12
    assert (tally.wrong_bytes, tally.hangs, tally.exceptions, tally.over_bound) == (0, 0, 0, 0)
    assert sum(tally.outcomes.values()) > 0


@pytest.mark.parametrize("kind", ["folder", "object"])
@pytest.mark.parametrize("fault", [FaultKind.BIT_FLIP, FaultKind.TORN_WRITE])
def test_wrong_bytes_of_a_tier_without_verification_are_counted(
    tmp_path: Path, kind: str, fault: FaultKind
) -> None:
    assert run_cell(place_on(kind, tmp_path, Blind()), "read", fault, 200).wrong_bytes > 0
    assert run_cell(place_on(kind, tmp_path), "read", fault, 200).wrong_bytes == 0


def test_wrong_bytes_of_a_cache_without_verification_are_counted(tmp_path: Path) -> None:
    place = place_on("object", tmp_path, Blind())
    # Which calls the fault strikes depends on thread timing.
    assert any(run_core(place, FaultKind.BIT_FLIP, 600).wrong_bytes for _ in range(10))


def test_exception_of_a_tier_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_on("object", tmp_path)
    monkeypatch.setattr(StoreTier, "find", lambda tier, chain: 1 // 0)
    tally = run_cell(place, "find", FaultKind.SLOW, 4)
    assert tally.exceptions == 4
    assert "ZeroDivisionError" in tally.first_exception


def test_more_known_blocks_than_the_bound_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_on("object", tmp_path)
    monkeypatch.setattr(StoreTier, "contains", lambda tier, keys: [True] * len(keys))
    assert run_cell(place, "find", FaultKind.SLOW, 4).over_bound == 4


def test_removed_folder_is_opened_again(tmp_path: Path) -> None:
    place, tally = place_on("folder", tmp_path), Tally()
    cell = Cell(place, "write", FaultKind.FOLDER_REMOVED, tally)
    cell.run(60)
    cell.close()
    assert tally.outcomes["DONE"] > 0
    assert tally.exceptions == 0
