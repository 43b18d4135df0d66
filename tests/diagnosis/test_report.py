import msgspec

from kvtier.diagnosis.report import Status, failed, fine, report_of, warned


def test_only_what_fails_is_not_ok() -> None:
    assert report_of([fine("a", "b"), warned("a", "b")], []).ok
    assert not report_of([fine("a", "b"), failed("a", "b")], []).ok


def test_a_setting_is_not_named_twice() -> None:
    check = failed("disk.path", "disk.path: /x is a file", "Name another.")
    assert (check.told, check.fix, check.status) == ("/x is a file", "Name another.", Status.FAIL)
    assert warned("disk.path", "disk.path: /x").told == "/x"


def test_programs_read_it() -> None:
    report = msgspec.json.decode(msgspec.json.encode(report_of([warned("a", "b")], [])))
    assert report == {
        "format": 1,
        "ok": True,
        "checks": [{"topic": "a", "status": "warn", "told": "b", "fix": None}],
        "families": [],
    }
