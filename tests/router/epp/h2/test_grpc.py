import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.router.epp.h2.grpc import Assembler, GrpcStatus, InvalidMessage, prefix


@given(st.lists(st.binary(max_size=30), max_size=5), st.data())
def test_messages_are_assembled_from_any_chunks(sent: list[bytes], draw: st.DataObject) -> None:
    content = b"".join(prefix(len(message)) + message for message in sent)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    assembler = Assembler(30)
    found: list[bytes] = []
    for start, stop in zip([0, *cuts], [*cuts, len(content)], strict=True):
        found += assembler.feed(content[start:stop])
    assert found == sent
    assert assembler.part_bytes == 0


def test_part_bytes_counts_incomplete_message() -> None:
    assembler = Assembler(30)
    assert assembler.feed(prefix(9) + b"abc") == []
    assert assembler.part_bytes == 8


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (prefix(31), GrpcStatus.RESOURCE_EXHAUSTED),
        (b"\x01" + prefix(3)[1:] + b"abc", GrpcStatus.UNIMPLEMENTED),
        (prefix(1) + b"a" + prefix(31), GrpcStatus.RESOURCE_EXHAUSTED),
    ],
)
def test_invalid_message_is_refused_by_its_prefix(content: bytes, status: GrpcStatus) -> None:
    with pytest.raises(InvalidMessage) as error:
        Assembler(30).feed(content)
    assert error.value.status is status
