from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kvtier.tiers.objectstore.server import seconds, stat_of, version_of
from kvtier.tiers.shared.store import Stat

if TYPE_CHECKING:
    from obstore import ObjectMeta

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def meta(e_tag: str | None, modified: datetime = NOON, size: int = 5) -> "ObjectMeta":
    return {
        "path": "a",
        "last_modified": modified,
        "size": size,
        "e_tag": e_tag,
        "version": None,
    }


def test_stat_of_header_equals_stat_of_listing() -> None:
    header = meta('"abc"')
    listing = meta("abc", NOON.replace(microsecond=987_654))
    assert stat_of(header) == stat_of(listing) == Stat(5, "abc", NOON.timestamp())


def test_version_is_the_entity_tag_without_quotes() -> None:
    assert version_of('W/"abc"') == version_of('"abc"') == version_of("abc") == "abc"
    assert version_of(None) == ""


def test_version_without_entity_tag_is_length_and_time() -> None:
    later = NOON.replace(second=1)
    stats = [meta(None), meta(None, later), meta(None, size=6)]
    assert len({stat_of(each).version for each in stats}) == 3


def test_times_are_whole_seconds() -> None:
    assert seconds(NOON.replace(microsecond=999_999)) == NOON.timestamp()
