import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.frames import Code, FrameReader, H2ProtocolError

FRAMES = st.lists(
    st.tuples(
        st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=40)
    ),
    max_size=6,
)


@given(FRAMES, st.data())
def test_frames_are_parsed_from_any_chunks(sent: list[frames.Frame], draw: st.DataObject) -> None:
    content = frames.PREFACE + b"".join(frames.frame(*frame) for frame in sent)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    reader = FrameReader(64)
    found: list[frames.Frame] = []
    for start, stop in zip([0, *cuts], [*cuts, len(content)], strict=True):
        found += reader.feed(content[start:stop])
    assert found == sent


def test_wrong_preface_is_refused_at_first_wrong_byte() -> None:
    for content in (b"G", b"PRI * HTTP/1.1", frames.PREFACE[:-1] + b"x"):
        with pytest.raises(H2ProtocolError) as broken:
            list(FrameReader(64).feed(content))
        assert broken.value.code is Code.PROTOCOL_ERROR
    assert list(FrameReader(64).feed(frames.PREFACE[:7])) == []


def test_frame_over_limit_is_refused_by_header_after_earlier_frames() -> None:
    good, bad = frames.frame(0, 0, 1, b"x" * 10), frames.head(0, 0, 1, 11)
    found = FrameReader(10).feed(frames.PREFACE + good + bad)
    assert next(found) == (0, 0, 1, b"x" * 10)
    with pytest.raises(H2ProtocolError) as broken:
        next(found)
    assert broken.value.code is Code.FRAME_SIZE_ERROR


@pytest.mark.parametrize(
    ("flags", "payload", "content"),
    [
        (0, b"abc", b"abc"),
        (frames.PADDED, b"\x02abc..", b"abc"),
        (frames.PADDED, b"\x00", b""),
        (frames.HAS_PRIORITY, b"12345abc", b"abc"),
        (frames.PADDED | frames.HAS_PRIORITY, b"\x0112345abc.", b"abc"),
    ],
)
def test_content_strips_padding_and_priority(flags: int, payload: bytes, content: bytes) -> None:
    assert frames.content(flags, payload) == content


@pytest.mark.parametrize(
    ("flags", "payload"),
    [(frames.PADDED, b""), (frames.PADDED, b"\x04abc"), (frames.HAS_PRIORITY, b"1234")],
)
def test_content_refuses_invalid_padding(flags: int, payload: bytes) -> None:
    with pytest.raises(H2ProtocolError):
        frames.content(flags, payload)


def test_numbers_and_settings_of_wrong_size_are_refused() -> None:
    assert frames.number(b"\x00\x00\x01\x02") == 258
    assert frames.parse_settings(b"\x00\x04\x00\x01\x00\x00") == [
        (frames.INITIAL_WINDOW_SIZE, 65536)
    ]
    for broken in (lambda: frames.number(b"\x00" * 5), lambda: frames.parse_settings(b"\x00" * 7)):
        with pytest.raises(H2ProtocolError) as error:
            broken()
        assert error.value.code is Code.FRAME_SIZE_ERROR


def test_encoded_frames_are_parsed_back() -> None:
    sent = (
        frames.settings({frames.MAX_FRAME_SIZE: 1 << 17})
        + frames.window_update(3, 9)
        + frames.reset(5, Code.CANCEL)
        + frames.goaway(7, Code.NO_ERROR, "why")
    )
    assert list(FrameReader(100).feed(frames.PREFACE + sent)) == [
        (frames.SETTINGS, 0, 0, b"\x00\x05\x00\x02\x00\x00"),
        (frames.WINDOW_UPDATE, 0, 3, b"\x00\x00\x00\x09"),
        (frames.RST_STREAM, 0, 5, b"\x00\x00\x00\x08"),
        (frames.GOAWAY, 0, 0, b"\x00\x00\x00\x07\x00\x00\x00\x00why"),
    ]
