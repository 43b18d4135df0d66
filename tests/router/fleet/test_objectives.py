from kvtier.router.fleet.objectives import Objectives


def test_flags_count_first_then_who_was_told_of_first() -> None:
    objectives = Objectives({"batch": -1})
    assert dict(objectives) == {"batch": -1}
    assert objectives.tell("newer", {})
    assert objectives.tell("older", {"a": 1, "batch": 5})
    assert objectives.tell("newer", {"a": 2, "b": 3})
    assert dict(objectives) == {"batch": -1, "a": 2, "b": 3}
    assert objectives.get("nobody", 0) == 0
    assert len(objectives) == 3


def test_what_is_told_replaces_what_the_same_source_told() -> None:
    objectives = Objectives()
    assert objectives.tell("one", {"a": 1})
    assert not objectives.tell("one", {"a": 1})
    assert objectives.tell("one", {"b": 2})
    assert dict(objectives) == {"b": 2}
