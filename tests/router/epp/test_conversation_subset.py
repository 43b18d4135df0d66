from envoy.config.core.v3.base_pb2 import Metadata

from kvtier.router.epp import messages
from kvtier.router.epp.conversation import subset_of


def hint(value: object) -> Metadata:
    metadata = Metadata()
    metadata.filter_metadata[messages.SUBSET_HINT].update({messages.SUBSET: value})
    return metadata


def test_no_hint_allows_all() -> None:
    assert subset_of(Metadata()) is None
    other = Metadata()
    other.filter_metadata[messages.SUBSET_HINT].update({"else": "x"})
    assert subset_of(other) is None
    assert len(Metadata().filter_metadata) == 0


def test_a_list_and_a_text_are_read() -> None:
    assert subset_of(hint(["a:1", " b:2 "])) == ("a:1", "b:2")
    assert subset_of(hint("a:1, b:2,")) == ("a:1", "b:2")


def test_a_hint_that_cannot_be_read_allows_nobody() -> None:
    for value in ([], "", 7, None, {"a": 1}, [1, None]):
        assert subset_of(hint(value)) == ()
