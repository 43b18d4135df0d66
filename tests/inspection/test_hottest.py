"""Chains of segments, from the reads in journals."""

from collections.abc import Sequence

import pytest

from kvtier.blocks.key import UNKNOWN_PARENT, BlockKey
from kvtier.evictor.table import Use
from kvtier.inspection import hottest
from kvtier.inspection.hottest import ReadCounts
from kvtier.inspection.survey import Chain
from kvtier.testing.samples import sample_space
from kvtier.testing.tiers import key
from kvtier.tiers.shared.format import Segment, segment_name

SPACE = sample_space(blocks_per_chunk=2)


def segment(first: int, count: int = 4, parent: int | None = None) -> Segment:
    return Segment(
        keys=tuple(key(first + number) for number in range(count)),
        checksums=(b"c" * 16,) * count,
        parent=None if parent is None else key(parent),
        block_bytes=1,
        space_digest=bytes(32),
        algorithm=1,
    )


def chains(segments: list[Segment], reads: dict[int, int], count: int = 10) -> list[Chain]:
    known = {each.keys[0]: each for each in segments}
    mentioned = ReadCounts()
    for first, times in reads.items():
        for time in range(times):
            mentioned.add(f"{segment_name(key(first))}\n".encode(), 100.0 + time)
    return mentioned.chains(lambda firsts: map(known.get, firsts), SPACE, count)


def test_chain_continues_while_reads_stay_above_half() -> None:
    (chain,) = chains([segment(0), segment(4, 3, 3), segment(7, 1, 6)], {0: 5, 4: 5, 7: 4})
    assert (chain.first_key, chain.parent) == (key(0).hex(), None)
    assert (chain.reads, chain.last_read_s) == (5, 104.0)
    assert (chain.segments, chain.blocks, chain.tokens) == (3, 8, 8 * 2 * 16)


def test_shared_prefix_is_a_chain_of_its_own() -> None:
    shared, tails = segment(0), [segment(10, 2, 3), segment(20, 5, 3)]
    found = chains([shared, *tails], {0: 10, 10: 4, 20: 3})
    assert [(each.reads, each.blocks) for each in found] == [(10, 4), (4, 2), (3, 5)]
    assert [each.parent for each in found] == [None, key(3).hex(), key(3).hex()]


def test_chain_continues_with_the_most_read_branch() -> None:
    found = chains([segment(0), segment(10, 2, 3), segment(20, 5, 3)], {0: 10, 10: 6, 20: 7})
    assert [(each.reads, each.blocks) for each in found] == [(10, 9), (6, 2)]


def test_blocks_in_two_segments_count_once() -> None:
    (chain,) = chains([segment(0, 4), segment(2, 4, 1)], {0: 2, 2: 2})
    assert (chain.segments, chain.blocks) == (2, 6)


def test_missing_segments_are_left_out_of_chains() -> None:
    (chain,) = chains([segment(4, 4, 3)], {0: 9, 4: 2})
    assert (chain.first_key, chain.reads) == (key(4).hex(), 2)
    assert chain.parent == key(3).hex()


def test_cycle_of_segments_is_left_out() -> None:
    assert chains([segment(0, 4, 7), segment(4, 4, 3)], {0: 1, 4: 1}) == []


def test_journal_lines_without_a_segment_are_ignored() -> None:
    reads = ReadCounts()
    reads.add(b"\xff\n../../etc/passwd\nblocks/fff/00.kvt\n\n", 1.0)
    assert reads.chains(lambda firsts: [segment(0) for _ in firsts], SPACE, 10) == []


def test_chain_with_unknown_parent_and_group() -> None:
    first = BlockKey(bytes(32) + (9).to_bytes(4, "big"))
    lone = Segment(
        keys=(first,),
        checksums=(b"c" * 16,),
        parent=UNKNOWN_PARENT,
        block_bytes=1,
        space_digest=bytes(32),
        algorithm=1,
    )
    reads = ReadCounts()
    reads.add(segment_name(first).encode(), 1.0)
    (chain,) = reads.chains(lambda _firsts: [lone], SPACE, 1)
    assert (chain.parent, chain.tokens) == ("", None)


def test_headers_read_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hottest, "HEADERS_MAX", 3)
    reads, asked = ReadCounts(), []
    for number in range(10):
        for _ in range(number + 1):
            reads.add(segment_name(key(number)).encode(), 1.0)

    def load(firsts: Sequence[BlockKey]) -> list[None]:
        asked.append(list(firsts))
        return [None] * len(firsts)

    assert reads.chains(load, SPACE, 1) == []
    assert reads.chains(load, SPACE, 0) == []
    assert asked == [[key(9), key(8), key(7)], []]


def test_folded_reads_are_added() -> None:
    reads = ReadCounts()
    reads.add(segment_name(key(1)).encode(), 50.0)
    reads.add_folded({key(1): Use(40.0, 3), key(2): Use(60.0, 2), b"": Use(70.0, 9)})
    known = {number: segment(number) for number in (1, 2)}
    found = reads.chains(lambda _firsts: [known[1], known[2]], SPACE, 10)
    assert [(each.reads, each.last_read_s) for each in found] == [(4, 50.0), (2, 60.0)]


def test_most_read_segments_of_a_summary_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads in journals are part of the choice."""
    monkeypatch.setattr(hottest, "HEADERS_MAX", 2)
    reads, asked = ReadCounts(), []
    for _ in range(9):
        reads.add(segment_name(key(3)).encode(), 1.0)
    reads.add_folded({key(number): Use(1.0, number) for number in range(1, 8)})

    def load(firsts: Sequence[BlockKey]) -> list[None]:
        asked.extend(firsts)
        return [None] * len(firsts)

    reads.chains(load, SPACE, 1)
    assert asked == [key(3), key(7)]


def test_counted_segments_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hottest, "SEGMENTS_MAX", 3)
    reads, asked = ReadCounts(), []
    for number in (*range(10), 1):
        reads.add(segment_name(key(number)).encode(), 1.0)

    def load(firsts: Sequence[BlockKey]) -> list[None]:
        asked.extend(firsts)
        return [None] * len(firsts)

    reads.chains(load, SPACE, 1)
    assert asked == [key(1), key(0), key(2)]
