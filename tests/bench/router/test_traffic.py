import itertools
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier_bench.router.traffic import Schedule, Traffic, arrivals_s, opening
from kvtier_bench.workload import read_as
from tests.bench.conftest import WordEncoder

WORKLOADS = Path(__file__).parents[3] / "benchmarks" / "workloads"


def small(**changes: int) -> Traffic:
    fields = {
        "groups": 3,
        "system_prompt_len": 256,
        "question_len": 48,
        "prompts_per_group": 2,
        "output_len": 4,
        "concurrency": 1,
        "block_tokens": 128,
        "device_blocks": 4,
        "busy_percent": 60,
        "ram_blocks": 8,
    }
    return Traffic(name="small", title="small", **{**fields, **changes})


def test_editions_differ_only_in_their_opening() -> None:
    encode = WordEncoder()
    schedule = Schedule(small(), encode, encode.decode, 1, 60.0)
    first, second = schedule.edition(1), schedule.edition(2)
    assert [one.label for one in first] == [one.label for one in second]
    assert [one.due_s for one in first] == [one.due_s for one in second]
    assert [one.tokens for one in first] == [one.tokens for one in second]
    openings = {one.text.partition("\n")[0] for one in (*first, *second)}
    assert len(openings) == 2 * 3
    assert all(each.startswith("Edition ") for each in openings)
    assert [one.text.partition("\n")[2] for one in first] == [
        one.text.partition("\n")[2] for one in second
    ]


def test_prompts_of_a_group_share_only_its_prefix() -> None:
    encode = WordEncoder()
    by_group: dict[int, list[list[int]]] = {}
    for one in Schedule(small(), encode, encode.decode, 1, 60.0).edition(0):
        by_group.setdefault(one.group, []).append(encode(one.text))
        assert one.tokens == len(encode(one.text))
    for prompts in by_group.values():
        one, two = prompts
        assert one[: 256 + 4] == two[: 256 + 4]
        assert one != two


def test_openings_have_equal_lengths_and_a_last_edition() -> None:
    assert len(opening(0, 0)) == len(opening(8_999, 899))
    with pytest.raises(InvalidSettings, match="fewer rounds"):
        opening(9_000, 0)


def test_last_arrival_follows_from_the_rate_for_any_seed() -> None:
    for seed in (1, 2):
        moments = arrivals_s(30, 60, seed)
        assert moments[-1] == pytest.approx(30.0)
        assert list(moments) == sorted(moments)
        assert moments[0] > 0
    assert arrivals_s(30, 60, 1) != arrivals_s(30, 60, 2)
    gaps = [two - one for one, two in itertools.pairwise(moments)]
    assert max(gaps) > 3 * min(gaps)


@pytest.mark.parametrize("name", ["replicas"])
def test_shipped_traffic_overflows_a_device_and_fits_below_it(name: str) -> None:
    traffic = read_as(Traffic, WORKLOADS / f"{name}.yaml")
    assert traffic.name == name
    # There are two replicas, each of which has half of the groups.
    assert traffic.working_set_blocks / 2 > traffic.device_blocks
    assert traffic.working_set_blocks <= traffic.ram_blocks
