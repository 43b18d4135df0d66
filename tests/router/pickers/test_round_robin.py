from kvtier.router.pickers.round_robin import PLUGIN
from tests.router.cases import candidate, made, names, request


def test_picker_takes_turns_by_name() -> None:
    picker = made(PLUGIN)
    three = [candidate(name) for name in "cab"]
    orders = ["".join(names(picker.pick(request(), three, [0, 0, 0]))) for _ in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


def test_picker_continues_when_replicas_change() -> None:
    picker = made(PLUGIN)
    assert names(picker.pick(request(), [candidate("b"), candidate("d")], [0, 0]))[0] == "b"
    assert names(picker.pick(request(), [candidate("a"), candidate("c")], [0, 0]))[0] == "c"
    assert names(picker.pick(request(), [candidate("a")], [0]))[0] == "a"
