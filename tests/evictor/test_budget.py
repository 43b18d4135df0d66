"""Watermarks, quotas, and the amounts that each shard has to free."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvtier.evictor.budget import (
    STEPS,
    Amount,
    Bounds,
    Plan,
    ShardOfTree,
    ShardUsages,
    Step,
    Usage,
    Watermarks,
    divide,
    plan,
    put_usages,
    read_usages,
    steps_of,
)
from kvtier.evictor.table import Table
from tests.evictor.scenes import Scene

FOREVER = float("inf")


def usage(*steps: tuple[float, int, int]) -> Usage:
    made = [Step(*step) for step in sorted(steps)]
    files = sum(step.files for step in made)
    return Usage(sum(step.size_bytes for step in made), files, files, made)


def test_watermarks_excess_only_above_high() -> None:
    watermarks = Watermarks(100, 80)
    assert [watermarks.excess(used) for used in (0, 80, 100, 101, 150)] == [0, 0, 0, 21, 70]
    assert Watermarks().excess(10**18) == 0


def test_divide_takes_coldest_steps_of_all_shards() -> None:
    usages = {
        ("0", "t"): usage((1, 100, 1), (5, 100, 1)),
        ("1", "t"): usage((2, 100, 1), (3, 100, 1)),
    }
    assert divide(Amount(250, 0), usages, FOREVER) == {
        ("0", "t"): Amount(100, 1),
        ("1", "t"): Amount(150, 1),
    }


def test_divide_takes_part_of_step() -> None:
    usages = {("0", "t"): usage((1, 1000, 10))}
    assert divide(Amount(300, 0), usages, FOREVER) == {("0", "t"): Amount(300, 0)}
    assert divide(Amount(0, 3), usages, FOREVER) == {("0", "t"): Amount(0, 3)}


def test_divide_ignores_hot_steps() -> None:
    usages = {("0", "t"): usage((1, 100, 1), (9, 100, 1))}
    assert divide(Amount(200, 0), usages, newest_s=8) == {("0", "t"): Amount(100, 1)}


def test_plan_for_inodes_alone() -> None:
    usages = {("0", "t"): usage((1, 0, 5), (2, 0, 5))}
    bounds = Bounds(inodes=Watermarks(8, 6))
    assert plan(usages, bounds, {}, FOREVER) == Plan({}, {("0", "t"): Amount(0, 4)})


def test_plan_counts_quota_for_whole_store() -> None:
    usages = {
        ("0", "big"): usage((10, 600, 6)),
        ("0", "old"): usage((1, 400, 4)),
    }
    quotas = {"big": Bounds(Watermarks(500, 400))}
    by_quota = {("0", "big"): Amount(200, 0)}
    assert plan(usages, Bounds(), quotas, FOREVER) == Plan(by_quota, {})
    whole = Bounds(Watermarks(900, 800))
    assert plan(usages, whole, quotas, FOREVER) == Plan(by_quota, {})
    tighter = Bounds(Watermarks(900, 700))
    assert plan(usages, tighter, quotas, FOREVER) == Plan(by_quota, {("0", "old"): Amount(100, 0)})


def test_plan_attributes_bound_separately_from_quota() -> None:
    usages = {("0", "small"): usage((1, 100, 1), (2, 100, 1))}
    quotas = {"small": Bounds(Watermarks(1000, 900))}
    asked = plan(usages, Bounds(Watermarks(150, 100)), quotas, FOREVER)
    assert asked == Plan({}, {("0", "small"): Amount(100, 1)})


def test_plan_frees_nothing_twice() -> None:
    usages = {("0", "big"): usage((1, 300, 3), (2, 300, 3))}
    quotas = {"big": Bounds(Watermarks(400, 300))}
    freed = plan(usages, Bounds(Watermarks(400, 100)), quotas, FOREVER)
    assert freed.quota[("0", "big")].size_bytes == 300
    assert freed.bound[("0", "big")].size_bytes == 200


def test_plan_with_filesystem_use() -> None:
    usages = {("0", "t"): usage((1, 100, 1), (2, 100, 1))}
    assert plan(usages, Bounds(Watermarks(850, 700)), {}, FOREVER, Amount(800, 2)) == Plan({}, {})
    freed = plan(usages, Bounds(Watermarks(850, 700)), {}, FOREVER, Amount(900, 2))
    assert freed.bound == {("0", "t"): Amount(200, 2)}


STEP = st.tuples(st.integers(0, 50), st.integers(0, 500), st.integers(1, 9))
USAGES = st.dictionaries(
    st.tuples(st.sampled_from("012"), st.sampled_from("ab")),
    st.lists(STEP, max_size=6).map(lambda steps: usage(*steps)),
)


@given(USAGES, st.integers(0, 3000), st.integers(0, 30), st.integers(0, 60))
def test_divide_takes_enough_and_never_more_than_exists(
    usages: dict[ShardOfTree, Usage], size_bytes: int, inodes: int, newest_s: int
) -> None:
    shares = divide(Amount(size_bytes, inodes), usages, newest_s)
    steps = [step for one in usages.values() for step in one.steps if step.recent_s <= newest_s]
    cold = Amount(sum(step.size_bytes for step in steps), sum(step.files for step in steps))
    asked = [sum(column) for column in zip(*shares.values(), strict=True)] or [0, 0]
    assert asked[0] >= min(size_bytes, cold.size_bytes)
    assert asked[1] >= min(inodes, cold.inodes)
    for place, share in shares.items():
        mine = [step for step in usages[place].steps if step.recent_s <= newest_s]
        assert share.size_bytes <= sum(step.size_bytes for step in mine)
        assert share.inodes <= sum(step.files for step in mine)


def test_steps_contain_all_blocks_from_cold_to_hot() -> None:
    table = Table()
    for number in range(1000):
        table.add(b"x", number, 0.0, float((number * 7) % 1000))
    gone = np.zeros(1000, dtype=np.bool_)
    gone[:100] = True
    steps = steps_of(table, gone)
    assert len(steps) == STEPS
    assert sum(step.files for step in steps) == 900
    assert sum(step.size_bytes for step in steps) == sum(range(100, 1000))
    assert [step.recent_s for step in steps] == sorted(step.recent_s for step in steps)
    assert steps_of(Table(), np.zeros(0, dtype=np.bool_)) == []


def test_read_usages_combines_own_and_published() -> None:
    scene = Scene()
    usage = Usage(100, 3, 2, [Step(1.5, 50, 1), Step(2.5, 50, 1)])
    put_usages(scene.store, "3", ShardUsages({"tree": usage}))
    put_usages(scene.store, "rest", ShardUsages({"tree": Usage(7, 1)}))
    put_usages(scene.store, "4", ShardUsages({"tree": Usage(999, 9)}))
    scene.store.put("leases/usage-5.json", b"{]")
    own = {"4": ShardUsages({"other": Usage(1, 1)})}
    assert read_usages(scene.store, own) == {
        ("3", "tree"): usage,
        ("4", "other"): Usage(1, 1),
        ("rest", "tree"): Usage(7, 1),
    }
