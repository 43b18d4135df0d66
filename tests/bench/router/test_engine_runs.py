import msgspec
import pytest

from kvtier_bench.client import CompletionResult
from kvtier_bench.router.engine_runs import count_wrong
from kvtier_bench.router.traffic import Arrival, ArrivalResult

ASKED = Arrival(0, 0, 0.0, "text", 10)
TOLD = CompletionResult(
    text="a", ttft_s=1.0, e2e_s=2.0, prompt_tokens=10, cached_tokens=0, output_tokens=4
)


def answer(**changes: int) -> ArrivalResult:
    told = msgspec.structs.replace(TOLD, **changes)
    return ArrivalResult(label="0/0", due_s=0.0, late_s=0.0, completion=told)


@pytest.mark.parametrize(
    ("changes", "wrong"), [({}, 0), ({"prompt_tokens": 11}, 1), ({"output_tokens": 3}, 1)]
)
def test_answer_of_another_length_is_counted_as_wrong(changes: dict[str, int], wrong: int) -> None:
    failed = ArrivalResult(label="0/0", due_s=0.0, late_s=0.0, error="500")
    assert count_wrong([ASKED, ASKED], [answer(**changes), failed], 4) == wrong
