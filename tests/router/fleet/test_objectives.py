from kvtier.router.fleet.objectives import Objectives


def test_objectives_precedence_is_fixed_then_first_source() -> None:
    objectives = Objectives({"batch": -1})
    assert dict(objectives) == {"batch": -1}
    assert objectives.update("newer", {})
    assert objectives.update("older", {"a": 1, "batch": 5})
    assert objectives.update("newer", {"a": 2, "b": 3})
    assert dict(objectives) == {"batch": -1, "a": 2, "b": 3}
    assert objectives.get("nobody", 0) == 0
    assert len(objectives) == 3


def test_objectives_update_replaces_those_of_same_source() -> None:
    objectives = Objectives()
    assert objectives.update("one", {"a": 1})
    assert not objectives.update("one", {"a": 1})
    assert objectives.update("one", {"b": 2})
    assert dict(objectives) == {"b": 2}
