import pytest

from kvtier.evictor.layouts import Kind
from kvtier.evictor.scan import settle
from kvtier.tiers.shared.folder import FileUsage
from tests.evictor.scenes import Scene


@pytest.mark.parametrize(
    ("kind", "age_s", "options", "goes"),
    [
        (Kind.TEMPORARY, 3601, {}, True),
        (Kind.TEMPORARY, 3599, {}, False),
        (Kind.TEMPORARY, 20, {"orphan_s": 10}, True),
        (Kind.UNKNOWN, 10**6, {}, False),
        (Kind.UNKNOWN, 3601, {"delete_unknown": True}, True),
        (Kind.UNKNOWN, 3599, {"delete_unknown": True}, False),
        (Kind.KEPT, 10**6, {"delete_unknown": True}, False),
    ],
)
def test_who_goes(kind: Kind, age_s: float, options: dict[str, object], goes: bool) -> None:
    scene = Scene()
    scene.store.put("file", b"1")
    work = scene.work(**options)
    written_s = scene.clock.now_s() - age_s
    assert settle(work, "0", FileUsage("file", 1, written_s, written_s), kind) is goes
    assert scene.names() == ([] if goes else ["file"])
    assert work.report.unknown == (["file"] if kind is Kind.UNKNOWN else [])
