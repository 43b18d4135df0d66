from pathlib import Path

import msgspec
import pytest

from kvtier.errors import InvalidSettings
from kvtier_bench.workload import (
    Encode,
    Workload,
    build_prompts,
    distinct_prompts,
    model_encoder,
    read_corpus,
    read_workload,
)

WORKLOADS = Path(__file__).parents[2] / "benchmarks" / "workloads"


def test_prompts_have_requested_lengths(small: Workload, encode: Encode) -> None:
    prompts = build_prompts(small, encode, seed=1)
    assert len(prompts) == small.requests == 12
    assert {len(prompt.tokens) for prompt in prompts} == {256 + 48}


def test_prompt_order_depends_on_seed_only(small: Workload, encode: Encode) -> None:
    first, again = (build_prompts(small, encode, seed=1) for _ in range(2))
    other = build_prompts(small, encode, seed=2)
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


def test_groups_share_no_first_block(small: Workload, encode: Encode) -> None:
    prefixes: dict[int, set[tuple[int, ...]]] = {}
    for prompt in build_prompts(small, encode, seed=1):
        prefixes.setdefault(prompt.group, set()).add(tuple(prompt.tokens[:256]))
    assert all(len(each) == 1 for each in prefixes.values())
    first_blocks = {prefix[:128] for each in prefixes.values() for prefix in each}
    assert len(first_blocks) == small.groups


def test_prefixes_share_no_text(small: Workload) -> None:
    def positions(text: str) -> list[int]:
        count = len(text.split())
        return list(range(count)) if count > 1000 else [-1] * count

    prefixes = {each.group: each.tokens[:256] for each in build_prompts(small, positions, seed=1)}
    assert len({token for prefix in prefixes.values() for token in prefix}) == 3 * 256


def test_questions_are_distinct(small: Workload, encode: Encode) -> None:
    prompts = build_prompts(small, encode, seed=1)
    assert len({tuple(prompt.tokens[256:]) for prompt in prompts}) == small.requests


def test_labels_do_not_depend_on_order(small: Workload, encode: Encode) -> None:
    by_label = {each.label: each.tokens for each in build_prompts(small, encode, seed=1)}
    for prompt in build_prompts(small, encode, seed=2):
        assert by_label[prompt.label] == prompt.tokens


def test_working_set_counts_prefixes_and_requests_in_flight(
    small: Workload, encode: Encode
) -> None:
    # 3 prefixes of 2 blocks, and in flight 1 block beside the prefix for each request.
    assert small.working_set_blocks == 7
    assert small.working_set_ratio == pytest.approx(0.7)
    assert msgspec.structs.replace(small, concurrency=2).working_set_blocks == 8


@pytest.mark.parametrize(
    ("name", "low", "high"), [("high-1.2", 1.15, 1.25), ("high-1.7", 1.65, 1.75), ("low", 0.2, 0.8)]
)
def test_shipped_workloads_have_working_set_of_their_name(
    name: str, low: float, high: float, encode: Encode
) -> None:
    workload = read_workload(WORKLOADS / f"{name}.yaml")
    assert workload.name == name
    assert low <= workload.working_set_ratio <= high
    build_prompts(workload, encode, seed=1)


def test_workload_longer_than_corpus_is_refused(small: Workload, encode: Encode) -> None:
    greedy = msgspec.structs.replace(small, groups=10_000)
    with pytest.raises(InvalidSettings, match="more text"):
        build_prompts(greedy, encode, seed=1)


def test_question_shorter_than_its_frame_is_refused(small: Workload, encode: Encode) -> None:
    with pytest.raises(InvalidSettings, match="question_len"):
        build_prompts(msgspec.structs.replace(small, question_len=5), encode, seed=1)


def test_invalid_workload_file_is_named_with_its_fault(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("name: odd\ntitle: odd\ngroups: many\n")
    with pytest.raises(InvalidSettings, match=r"odd\.yaml.*int"):
        read_workload(path)
    with pytest.raises(InvalidSettings, match="--workloads"):
        read_workload(tmp_path / "missing.yaml")


def test_distinct_prompts_share_no_text() -> None:
    positions = iter(range(10**6))
    prompts = distinct_prompts(lambda text: [next(positions) for _ in text.split()], [30, 20, 30])
    assert [len(prompt) for prompt in prompts] == [30, 20, 30]
    assert len({token for prompt in prompts for token in prompt}) == 80
    with pytest.raises(InvalidSettings, match="corpus"):
        distinct_prompts(str.split, [10**7])  # type: ignore[arg-type]


def test_corpus_is_english_and_constant() -> None:
    assert "statement" in read_corpus()
    assert read_corpus() == read_corpus()


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(InvalidSettings, match=r"tokenizer\.json"):
        model_encoder(tmp_path)


def test_zero_lengths_and_counts_are_refused(small: Workload) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        msgspec.structs.replace(small, groups=0)
