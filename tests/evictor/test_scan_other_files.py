import pytest

from kvtier.evictor.layouts import FileTreatment
from kvtier.evictor.scan import handle_other
from kvtier.tiers.shared.folder import FileUsage
from tests.evictor.scenes import Scene


@pytest.mark.parametrize(
    ("kind", "age_s", "options", "goes"),
    [
        (FileTreatment.TEMPORARY, 3601, {}, True),
        (FileTreatment.TEMPORARY, 3599, {}, False),
        (FileTreatment.TEMPORARY, 20, {"orphan_s": 10}, True),
        (FileTreatment.UNKNOWN, 10**6, {}, False),
        (FileTreatment.UNKNOWN, 3601, {"delete_unknown": True}, True),
        (FileTreatment.UNKNOWN, 3599, {"delete_unknown": True}, False),
        (FileTreatment.KEPT, 10**6, {"delete_unknown": True}, False),
    ],
)
def test_other_files_are_removed_by_kind_and_age(
    kind: FileTreatment, age_s: float, options: dict[str, object], goes: bool
) -> None:
    scene = Scene()
    scene.store.put("file", b"1")
    context = scene.context(**options)
    written_s = scene.clock.now_s() - age_s
    assert handle_other(context, "0", FileUsage("file", 1, written_s, written_s), kind) is goes
    assert scene.names() == ([] if goes else ["file"])
    assert context.report.unknown == (["file"] if kind is FileTreatment.UNKNOWN else [])
