import msgspec

from kvtier.diagnosis.report import Status, failed, fine, report_of, warned


def test_report_is_ok_unless_a_check_failed() -> None:
    assert report_of([fine("a", "b"), warned("a", "b")], []).ok
    assert not report_of([fine("a", "b"), failed("a", "b")], []).ok


def test_check_does_not_repeat_its_topic() -> None:
    check = failed("disk.path", "disk.path: /x is a file", "Name another.")
    assert (check.told, check.fix, check.status) == ("/x is a file", "Name another.", Status.FAIL)
    assert warned("disk.path", "disk.path: /x").told == "/x"


def test_report_fields_are_stable() -> None:
    report = msgspec.json.decode(msgspec.json.encode(report_of([warned("a", "b")], [])))
    assert report == {
        "format": 1,
        "ok": True,
        "checks": [{"topic": "a", "status": "warn", "told": "b", "fix": None}],
        "families": [],
    }
