"""The contract suite for eviction policies, and the hit rate of a policy on a trace.

The suite tests what the cache relies on, for the policies of kvtier and for those of others:

    class TestMine(EvictionContract):
        def make_policy(self, capacity_rows: int | None = None) -> EvictionPolicy:
            return Mine(capacity_rows=capacity_rows)

Needs pytest and hypothesis, which are development dependencies. No test depends on time.
"""

import tracemalloc
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.blocks.key import BlockKey
from kvtier.clock import seeded
from kvtier.eviction.base import EvictionPolicy
from kvtier.eviction.lru import Lru

_SETTINGS = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)


def numbered_key(number: int) -> BlockKey:
    """Return a key like an engine's: 32 bytes of hash and a 4-byte group index."""
    return BlockKey(number.to_bytes(32, "little") + bytes(4))


def hit_rate(policy: EvictionPolicy, trace: Iterable[int], capacity_rows: int) -> float:
    """Return the share of the requests in `trace` that a tier of `capacity_rows` rows holds.

    `trace` is a sequence of block numbers.
    """
    row_of: dict[int, int] = {}
    held = [-1] * capacity_rows
    requests = hits = 0
    for block in trace:
        requests += 1
        if block in row_of:
            hits += 1
            policy.access(row_of[block])
            continue
        row: int | None = len(row_of)
        if row == capacity_rows:
            row = policy.victim(lambda _row: True)
            assert row is not None
            del row_of[held[row]]
        assert row is not None
        policy.insert(row, numbered_key(block))
        row_of[block] = row
        held[row] = block
    return hits / requests


def scanned_zipf(seed: int, requests: int = 30_000, blocks: int = 4_000) -> Iterator[int]:
    """Yield Zipf-distributed requests, and after each 1,000 of them 500 blocks seen only once."""
    rng = seeded(seed)
    weights = list(accumulate(1 / rank for rank in range(1, blocks + 1)))
    scanned = blocks
    for start in range(0, requests, 1_000):
        yield from rng.choices(range(blocks), cum_weights=weights, k=1_000)
        yield from range(scanned + start // 2, scanned + start // 2 + 500)


class _Checked:
    """A policy beside a plain model of it: the set of resident rows."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self.resident: set[int] = set()
        self.pinned: set[int] = set()
        self._keys = 0

    def insert(self, row: int) -> None:
        if row in self.resident:
            self.policy.access(row)
        else:
            self._keys += 1
            self.policy.insert(row, numbered_key(self._keys % 97))
            self.resident.add(row)
        self._check_size()

    def access(self, row: int) -> None:
        if row in self.resident:
            self.policy.access(row)
            self._check_size()

    def remove(self, row: int) -> None:
        if row in self.resident:
            self.policy.remove(row)
            self.resident.discard(row)
            self._check_size()

    def toggle(self, row: int) -> None:
        self.pinned ^= {row}

    def victim(self) -> None:
        evictable = self.resident - self.pinned
        asked: set[int] = set()

        def accept(row: int) -> bool:
            asked.add(row)
            return row in evictable

        row = self.policy.victim(accept)
        assert asked <= self.resident, "the policy asked about a row that is not resident"
        if row is None:
            assert not evictable, "the policy found no victim although a row is evictable"
        else:
            assert row in evictable, "the policy evicted a row that is pinned or not resident"
            self.resident.discard(row)
        self._check_size()

    def drain(self) -> None:
        self.pinned.clear()
        while self.resident:
            self.victim()
        assert self.policy.victim(lambda _row: True) is None

    def _check_size(self) -> None:
        assert len(self.policy) == len(self.resident)


_OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "insert", "access", "remove", "toggle", "victim"]),
        st.integers(0, 23),
    ),
    max_size=120,
)


class EvictionContract(ABC):
    """The tests of an eviction policy: subclass it, implement `make_policy`, and run pytest."""

    keeps_insertion_order: ClassVar[bool] = True
    """Rows that were never accessed are evicted in order of arrival, whatever was pinned."""

    resists_scans: ClassVar[bool] = False
    """Whether the policy claims a better hit rate than LRU on a skewed load with scans."""

    @abstractmethod
    def make_policy(self, capacity_rows: int | None = None) -> EvictionPolicy:
        """Return a new policy without rows."""

    @_SETTINGS
    @given(operations=_OPERATIONS, capacity_rows=st.sampled_from([None, 1, 8, 64]))
    def test_operations_agree_with_model_set(
        self, operations: list[tuple[str, int]], capacity_rows: int | None
    ) -> None:
        """No row is lost, invented, duplicated, or evicted while pinned; sizes agree."""
        checked = _Checked(self.make_policy(capacity_rows))
        for verb, row in operations:
            if verb == "victim":
                checked.victim()
            else:
                getattr(checked, verb)(row)
        checked.drain()

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_random_operations_agree_with_model_set(self, seed: int) -> None:
        """The model agrees over 10,000 operations on many rows, during which the arrays grow."""
        rng = seeded(seed)
        checked = _Checked(self.make_policy())
        for _ in range(10_000):
            draw = rng.random()
            row = int(rng.random() ** 2 * 3_000)
            if draw < 0.45:
                checked.insert(row)
            elif draw < 0.75:
                checked.access(row)
            elif draw < 0.80:
                checked.remove(row)
            elif draw < 0.85:
                checked.toggle(row)
            else:
                checked.victim()
        assert len(checked.resident) > 100
        checked.drain()

    def test_empty_policy_has_no_victim(self) -> None:
        """`victim` returns None."""
        policy = self.make_policy()
        assert policy.victim(lambda _row: True) is None
        assert len(policy) == 0

    def test_row_can_be_reused_after_victim_and_remove(self) -> None:
        """A row number that gets another key keeps no history of the old one."""
        policy = self.make_policy()
        for number in range(6):
            policy.insert(0, numbered_key(number))
            policy.access(0)
            if number % 2:
                policy.remove(0)
                assert policy.victim(lambda _row: True) is None
            else:
                assert policy.victim(lambda _row: True) == 0
            assert len(policy) == 0

    def test_refusing_all_rows_changes_nothing(self) -> None:
        """A `victim` call that finds no row does not change the order of later victims."""
        drained = []
        for refusals in (0, 3):
            policy = self.make_policy(40)
            for row in range(40):
                policy.insert(row, numbered_key(row))
            for _ in range(refusals):
                assert policy.victim(lambda _row: False) is None
            for row in range(0, 40, 3):
                policy.access(row)
            drained.append([policy.victim(lambda _row: True) for _ in range(40)])
        assert drained[0] == drained[1]
        assert sorted(row for row in drained[0] if row is not None) == list(range(40))

    def test_pinned_rows_keep_their_order(self) -> None:
        """Rows skipped while pinned are evicted in order of arrival once they are unpinned."""
        if not self.keeps_insertion_order:
            pytest.skip("this policy does not promise an order")
        pinned = set(range(0, 40, 4))
        policy = self.make_policy(40)
        for row in range(40):
            policy.insert(row, numbered_key(row))
        others = [policy.victim(lambda row: row not in pinned) for _ in range(30)]
        assert others == [row for row in range(40) if row not in pinned]
        assert [policy.victim(lambda _row: True) for _ in range(10)] == sorted(pinned)

    def test_refused_prefix_is_not_walked_for_every_victim(self) -> None:
        """Only leaves of prefixes of 500 blocks, oldest first, are evictable; calls stay few."""
        chains, length = 8, 500
        children = bytearray(chains * length)
        policy = self.make_policy(chains * length)
        for row in range(chains * length):
            policy.insert(row, numbered_key(row))
            children[row] = row % length != length - 1
        calls = 0

        def leaf(row: int) -> bool:
            nonlocal calls
            calls += 1
            return not children[row]

        for _ in range(chains * length):
            evicted = policy.victim(leaf)
            assert evicted is not None
            if evicted % length:
                children[evicted - 1] = 0
        assert calls / (chains * length) < 40

    def test_scan_does_not_evict_popular_blocks(self) -> None:
        """On Zipf requests with scans the hit rate exceeds LRU's by at least two points."""
        if not self.resists_scans:
            pytest.skip("this policy does not promise to resist scans")
        lru = hit_rate(Lru(), scanned_zipf(seed=7), 400)
        mine = hit_rate(self.make_policy(400), scanned_zipf(seed=7), 400)
        unsized = hit_rate(self.make_policy(), scanned_zipf(seed=7), 400)
        assert mine > lru + 0.02
        assert unsized > lru + 0.02

    def test_memory_is_at_most_sixteen_bytes_a_row(self) -> None:
        """Allocations for 2^17 rows stay within twice that, the slack of doubling arrays."""
        rows = 1 << 17
        key = numbered_key(1)
        policy = self.make_policy()
        tracemalloc.start()
        try:
            for row in range(rows):
                policy.insert(row, key)
            allocated, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert allocated / rows <= 2 * 16
