import struct

import pytest

from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.frames import Broken, Code
from kvtier.router.epp.h2.peer import Peer, widened


def settings(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack(">HI", *pair) for pair in pairs)


def test_what_it_allows_is_taken_and_what_is_not_known_let_be() -> None:
    peer = Peer()
    peer.change(settings((frames.MAX_FRAME_SIZE, 20_000), (frames.INITIAL_WINDOW_SIZE, 7), (99, 1)))
    assert (peer.frame_bytes, peer.window_bytes) == (20_000, 7)


def test_open_streams_grow_by_what_is_left_of_all_changes_of_a_frame() -> None:
    peer = Peer()
    sizes = (7, 1 << 20, 65_536)
    assert peer.change(settings(*((frames.INITIAL_WINDOW_SIZE, size) for size in sizes))) == 1
    assert peer.change(settings((frames.INITIAL_WINDOW_SIZE, 65_530))) == -6
    assert peer.change(settings((frames.MAX_FRAME_SIZE, 20_000))) == 0


def test_settings_end() -> None:
    with pytest.raises(Broken) as broken:
        Peer().change(settings(*[(99, 1)] * 129))
    assert broken.value.code is Code.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (frames.INITIAL_WINDOW_SIZE, 1 << 31, Code.FLOW_CONTROL_ERROR),
        (frames.MAX_FRAME_SIZE, 16_383, Code.PROTOCOL_ERROR),
        (frames.MAX_FRAME_SIZE, 1 << 24, Code.PROTOCOL_ERROR),
        (frames.ENABLE_PUSH, 2, Code.PROTOCOL_ERROR),
    ],
)
def test_what_may_not_be_is_broken(name: int, value: int, code: Code) -> None:
    with pytest.raises(Broken) as broken:
        Peer().change(settings((name, value)))
    assert broken.value.code is code


def test_windows_end() -> None:
    assert widened(-5, 7) == 2
    with pytest.raises(Broken) as broken:
        widened(1, frames.MOST_WINDOW_BYTES)
    assert broken.value.code is Code.FLOW_CONTROL_ERROR
