from collections import Counter

from kvtier.router.pickers.least_request import PLUGIN
from tests.router.cases import candidate, made, names, request


def test_picker_orders_by_the_higher_request_count() -> None:
    candidates = [
        candidate("a", in_flight=3),
        candidate("b", running=1, waiting=1),
        candidate("c", in_flight=1, running=4),
    ]
    # The counts are 3, 2 and 4, as other clients send requests to c as well.
    assert names(made(PLUGIN).pick(request(), candidates, [9, 0, 9])) == ["b", "a", "c"]


def test_picker_breaks_ties_at_random() -> None:
    picker = made(PLUGIN)
    two = [candidate("a"), candidate("b")]
    firsts = Counter(names(picker.pick(request(), two, [0, 0]))[0] for _ in range(200))
    assert min(firsts["a"], firsts["b"]) > 60


def test_keys_are_the_request_counts() -> None:
    assert PLUGIN.keys([candidate("a", in_flight=2), candidate("b", running=3)], [1.0, 0.0]) == [
        2,
        3,
    ]
