"""The precise index compared with a simple model: sets of prefixes by replica and tier."""

from collections import Counter
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.clock import VirtualClock
from kvtier.index.fleet import precise as module
from kvtier.index.fleet import table
from kvtier.index.fleet.base import DEVICE, FleetIndex
from kvtier.index.fleet.events import BlocksRemoved, BlocksStored, DeviceCleared, block_name
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import TokenPrompt
from kvtier.testing.fleet import BLOCK_TOKENS, MODEL, FleetContract, prompt_of, tokens_of

Path = tuple[int, ...]
TIERS = (DEVICE, "ram", "disk")


def name_at(path: Path) -> int:
    """Return an engine's name for a prefix: a number that no other prefix has."""
    return block_name(hash((17, path)))


def stored(path: Path, count: int, tier: str, *, shared: bool = False, silent: bool = False):
    """Return the event that the last `count` blocks of a prefix entered a tier."""
    start = len(path) - count
    return BlocksStored(
        names=[name_at(path[: end + 1]) for end in range(start, len(path))],
        parent=name_at(path[:start]) if start and not silent else None,
        token_ids=[] if silent else tokens_of(path[start:]),
        block_tokens=0 if silent else BLOCK_TOKENS,
        tier=tier,
        is_shared=shared,
    )


def removed(path: Path, tier: str, *, shared: bool = False) -> BlocksRemoved:
    return BlocksRemoved(names=[name_at(path)], tier=tier, is_shared=shared, group=0)


class TestPrecise(FleetContract):
    def make_index(self) -> FleetIndex:
        index = PreciseIndex(clock=VirtualClock())
        for name in "abc":
            index.add(name, MODEL)
        return index

    def hold(self, index: FleetIndex, replica: str, token_ids: Sequence[int]) -> None:
        assert isinstance(index, PreciseIndex)
        index.add(replica, MODEL)
        whole = len(token_ids) // BLOCK_TOKENS
        used = token_ids[: whole * BLOCK_TOKENS]
        names = [block_name(hash(tuple(used[: end * BLOCK_TOKENS]))) for end in range(1, whole + 1)]
        event = BlocksStored(
            names=names, parent=None, token_ids=used, block_tokens=BLOCK_TOKENS, tier=DEVICE
        )
        index.apply(replica, [event])


class Model:
    """The prefixes that each replica holds in each tier; all blocks of a prefix must be held."""

    def __init__(self) -> None:
        self.held: Counter[tuple[str, str, Path]] = Counter()
        """The number of copies; shared storage has at most one."""
        self.members: set[str] = set()

    def tokens(self, replica: str, path: Path) -> dict[str, int]:
        found: dict[str, int] = {}
        tiers: list[str] = []
        for tier in (*TIERS, "shared"):
            tiers.append(tier)
            count = 0
            while count < len(path) and self._has(replica, tiers, path[: count + 1]):
                count += 1
            found[tier] = count * BLOCK_TOKENS
        return found

    def _has(self, replica: str, tiers: list[str], path: Path) -> bool:
        owners = [(replica, tier) for tier in tiers if tier != "shared"]
        if "shared" in tiers and replica in self.members:
            owners.append(("pool", "shared"))
        return any(self.held[*owner, path] for owner in owners)

    def take(self, owner: str, tier: str, paths: Iterable[Path]) -> None:
        for path in paths:
            self.held[owner, tier, path] += owner != "pool" or not self.held[owner, tier, path]


paths = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple)
replicas = st.sampled_from("ab")
tiers = st.sampled_from((*TIERS, "shared"))
steps = st.one_of(
    st.tuples(st.just("store"), replicas, tiers, paths),
    st.tuples(st.just("silent"), replicas, tiers, paths),
    st.tuples(st.just("remove"), replicas, tiers, paths),
    st.tuples(st.just("remove"), replicas, tiers, paths),
    st.tuples(st.just("clear"), replicas, tiers, paths),
)


class Feed:
    """Applies each event to the index and to the model."""

    def __init__(self) -> None:
        self.index = PreciseIndex(clock=VirtualClock())
        self.model = Model()
        self.known: dict[str, set[Path]] = {"a": set(), "b": set(), "pool": set()}
        """The blocks that an event without tokens may refer to."""
        self.settled: set[str] = set()
        """The replicas whose block size is known."""
        self.used: dict[str, set[str]] = {"a": set(), "b": set()}
        """The tiers in which each replica has held blocks of its own."""
        for name in "ab":
            self.index.add(name, MODEL)

    def take(self, what: str, replica: str, tier: str, path: Path) -> None:
        is_shared = tier == "shared"
        owner = "pool" if is_shared else replica
        held, known = self.model.held, self.known
        if what == "store":
            self.index.apply(replica, [stored(path, len(path), tier, shared=is_shared)])
            whole = {path[: end + 1] for end in range(len(path))}
            self.settled.add(replica)
            self._note(owner, tier, whole)
            self.model.take(owner, tier, whole)
        elif what == "silent":
            self.index.apply(replica, [stored(path, 1, tier, shared=is_shared, silent=True)])
            usable = known[owner] | known[replica] if replica in self.settled else set()
            if path in usable:
                self._note(owner, tier, {path[: end + 1] for end in range(len(path))})
                self.model.take(owner, tier, [path])
        elif what == "remove":
            self.index.apply(replica, [removed(path, tier, shared=is_shared)])
            if replica in self.settled:
                held[owner, tier, path] = max(0, held[owner, tier, path] - 1)
        else:
            self.index.apply(replica, [DeviceCleared()])
            for one in held:
                held[one] *= one[:2] != (replica, DEVICE)
            if self.used[replica] == {DEVICE} and replica not in self.model.members:
                # The replica holds nothing any more, so the index releases all that it knows.
                self.settled.discard(replica)
                known[replica].clear()
                self.used[replica].clear()
        if is_shared and what in ("store", "silent") and replica in self.settled:
            self.model.members.add(replica)

    def _note(self, owner: str, tier: str, paths: set[Path]) -> None:
        self.known[owner] |= paths
        if owner != "pool":
            self.used[owner].add(tier)


@pytest.mark.parametrize("holes_few", [0, 64])
@settings(max_examples=400, deadline=None)
@given(st.lists(steps, max_size=25), st.lists(paths, min_size=1, max_size=4))
def test_match_is_whole_prefix_in_any_order_of_removal(holes_few, taken, asked) -> None:
    few, module._HOLES_FEW = module._HOLES_FEW, holes_few
    try:
        feed = Feed()
        for step in taken:
            feed.take(*step)
            check(feed.index)
        for path in asked:
            found = feed.index.match(prompt_of(path), "ab")
            for name, match in zip("ab", found, strict=True):
                expected = feed.model.tokens(name, path)
                for tier, tokens in match.tokens.items():
                    assert tokens == expected[tier], (name, tier, path)
                assert match.best_tokens == max(expected.values())
    finally:
        module._HOLES_FEW = few


def check(index: PreciseIndex) -> None:
    for replica in index._replicas.values():
        if replica.held is not None:
            replica.held.check()
    for pool in index._groups.pools:
        pool.check()


def test_routed_prompt_counts_until_announced_or_expired() -> None:
    clock = VirtualClock()
    index = PreciseIndex(clock=clock, ttl_s=2.0)
    index.add("a", MODEL)
    index.apply("a", [stored((0,), 1, DEVICE)])
    index.routed(prompt_of([0, 1, 1]), "a")
    assert index.match(prompt_of([0, 1, 1]), "a")[0].tokens[DEVICE] == 48
    clock.advance(1.9)
    index.apply("a", [stored((0, 1), 2, DEVICE)])
    clock.advance(0.2)
    assert index.match(prompt_of([0, 1, 1]), "a")[0].tokens[DEVICE] == 32


def test_blocks_stored_and_removed_are_not_expected() -> None:
    index = PreciseIndex(clock=VirtualClock())
    index.add("a", MODEL)
    index.apply("a", [stored((0,), 1, DEVICE)])
    index.routed(prompt_of([0, 1, 1]), "a")
    index.apply("a", [stored((0, 1, 1), 3, DEVICE)])
    index.apply("a", [BlocksRemoved(names=[name_at((0, 1, 1)), name_at((0, 1))], tier=DEVICE)])
    assert index.match(prompt_of([0, 1, 1]), "a")[0].tokens[DEVICE] == 16
    index.routed(prompt_of([0, 1, 1]), "a")
    index.apply("a", [stored((0, 1), 2, "ram")])
    index.apply("a", [BlocksRemoved(names=[name_at((0, 1))], tier="ram")])
    assert index.match(prompt_of([0, 1, 1]), "a")[0].tokens[DEVICE] == 48


def test_expected_prefix_ends_at_removed_block() -> None:
    index = PreciseIndex(clock=VirtualClock())
    index.add("a", MODEL)
    path = (0, 1, 0, 1, 0, 1, 0, 1)
    index.apply("a", [stored((1,), 1, DEVICE)])
    index.routed(prompt_of(path), "a")
    index.apply("a", [stored(path, len(path), DEVICE), removed(path[:3], DEVICE)])
    assert index.match(prompt_of(path), "a")[0].best_tokens == 32


def test_shared_storage_counts_for_all_members_until_removed() -> None:
    index = PreciseIndex(clock=VirtualClock())
    for name in "abc":
        index.add(name, MODEL)
        index.apply(name, [stored((0,), 1, DEVICE)])
    index.apply("a", [stored((0, 1, 1), 3, "shared", shared=True)])
    index.apply("b", [stored((1,), 1, "shared", shared=True)])
    asked = prompt_of([0, 1, 1])
    assert [match.best_tokens for match in index.match(asked, "abc")] == [48, 48, 16]
    index.remove("a")
    assert index.match(asked, "b")[0].tokens == {DEVICE: 16, "shared": 48}
    gone = BlocksRemoved(names=[name_at((0, 1, 1))], tier="shared", is_shared=True)
    index.apply_shared("another", [gone])
    assert index.match(asked, "b")[0].best_tokens == 48
    index.apply_shared(MODEL, [gone, DeviceCleared()])
    assert index.match(asked, "b")[0].best_tokens == 32
    assert index.ignored_blocks == {"stranger": 1}


def test_replicas_of_other_block_sizes_or_models_are_separate() -> None:
    index = PreciseIndex(clock=VirtualClock())
    tokens = list(range(256))
    for name, model, size in (("a", MODEL, 16), ("b", MODEL, 64), ("c", "other", 16)):
        index.add(name, model)
        event = BlocksStored(
            names=list(range(1, 128 // size + 1)),
            parent=None,
            token_ids=tokens[:128],
            block_tokens=size,
            tier=DEVICE,
        )
        index.apply(name, [event])
    found = index.match(TokenPrompt(tokens[:120], MODEL), "abc")
    assert [match.best_tokens for match in found] == [112, 64, 0]


def test_blocks_of_one_replica_are_bounded_and_counted() -> None:
    index = PreciseIndex(clock=VirtualClock(), blocks_max=50)
    index.add("a", MODEL)
    for number in range(100):
        index.apply("a", [stored((number,), 1, DEVICE)])
    assert index.held_blocks("a") == 50
    assert index.refused_blocks == 50
    index.apply("stranger", [DeviceCleared(), stored((1,), 1, DEVICE)])
    assert index.ignored_blocks == {"stranger": 2}


def test_reset_replica_starts_from_nothing() -> None:
    index = PreciseIndex(clock=VirtualClock())
    index.add("a", MODEL)
    index.apply("a", [stored((0, 1), 2, DEVICE)])
    index.routed(prompt_of([0, 1, 1]), "a")
    index.reset("a")
    assert index.match(prompt_of([0, 1, 1]), "a")[0].best_tokens == 0
    assert all(len(group.table) == 0 for group in index._groups.of_model(MODEL))
    index.apply("a", [stored((0,), 1, "ram")])
    assert index.match(prompt_of([0, 1]), "a")[0].tokens == {DEVICE: 0, "ram": 16}


def test_device_cleared_keeps_slower_tiers() -> None:
    index = PreciseIndex(clock=VirtualClock())
    index.add("a", MODEL)
    for tier, path in ((DEVICE, (0, 1, 1)), ("ram", (0, 1)), ("disk", (0, 1, 1))):
        index.apply("a", [stored(path, len(path), tier)])
    index.routed(prompt_of([0, 1, 1, 0]), "a")
    index.apply("a", [DeviceCleared()])
    asked = prompt_of([0, 1, 1, 0])
    assert index.match(asked, "a")[0].tokens == {DEVICE: 0, "ram": 32, "disk": 48}
    index.apply("a", [stored((0,), 1, DEVICE)])
    assert index.match(asked, "a")[0].tokens == {DEVICE: 16, "ram": 32, "disk": 48}


def test_unheld_blocks_are_removed_with_next_events(monkeypatch) -> None:
    monkeypatch.setattr(table, "SWEPT_AT_ONCE", 2)
    index = PreciseIndex(clock=VirtualClock())
    index.add("a", MODEL)
    index.add("b", "another")
    index.apply("a", [stored((0, 1, 0, 1, 0), 5, DEVICE)])
    index.remove("a")
    assert len(index._groups.pools) == 1
    for _ in range(2):
        index.apply("b", [])
    assert index._groups.pools == []
    index.add("a", MODEL)
    index.apply("a", [stored((0, 1), 2, DEVICE)])
    assert index.match(prompt_of([0, 1]), "a")[0].best_tokens == 32
