import struct

import pytest

from kvtier.clock import VirtualClock
from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.frames import Code, H2ProtocolError
from kvtier.router.epp.h2.limits import (
    FrameBudget,
    H2Limits,
    MemoryBudget,
    PeerSettings,
    grown_window,
)


def test_memory_budget_is_bounded() -> None:
    memory = MemoryBudget(10)
    assert memory.take(6)
    assert not memory.take(5)
    assert memory.take(4)
    assert memory.take(-3)
    memory.release(7)
    assert memory.taken_bytes == 0


def test_frame_budget_is_spent_and_refills() -> None:
    clock = VirtualClock()
    budget = FrameBudget(H2Limits(frames_burst=3, frames_per_s=2.0), clock)
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]
    clock.advance(1.0)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    clock.advance(1000.0)
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]


def test_frame_budget_accepts_larger_costs() -> None:
    clock = VirtualClock()
    budget = FrameBudget(H2Limits(frames_burst=10, frames_per_s=2.0), clock)
    assert [budget.spend(6), budget.spend(6), budget.spend(4)] == [True, False, True]
    clock.advance(3.0)
    assert budget.spend(6)


def test_frame_budget_lasts_below_rate() -> None:
    clock = VirtualClock()
    budget = FrameBudget(H2Limits(frames_burst=3, frames_per_s=2.0), clock)
    for _ in range(1000):
        clock.advance(0.5)
        assert budget.spend()


def settings_payload(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack(">HI", *pair) for pair in pairs)


def test_peer_settings_apply_known_and_ignore_unknown() -> None:
    peer = PeerSettings()
    peer.apply(
        settings_payload((frames.MAX_FRAME_SIZE, 20_000), (frames.INITIAL_WINDOW_SIZE, 7), (99, 1))
    )
    assert (peer.frame_bytes, peer.window_bytes) == (20_000, 7)


def test_peer_settings_return_net_window_growth() -> None:
    peer = PeerSettings()
    sizes = (7, 1 << 20, 65_536)
    assert (
        peer.apply(settings_payload(*((frames.INITIAL_WINDOW_SIZE, size) for size in sizes))) == 1
    )
    assert peer.apply(settings_payload((frames.INITIAL_WINDOW_SIZE, 65_530))) == -6
    assert peer.apply(settings_payload((frames.MAX_FRAME_SIZE, 20_000))) == 0


def test_too_many_peer_settings_are_refused() -> None:
    with pytest.raises(H2ProtocolError) as broken:
        PeerSettings().apply(settings_payload(*[(99, 1)] * 129))
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
def test_forbidden_peer_settings_are_refused(name: int, value: int, code: Code) -> None:
    with pytest.raises(H2ProtocolError) as broken:
        PeerSettings().apply(settings_payload((name, value)))
    assert broken.value.code is code


def test_grown_window_is_bounded() -> None:
    assert grown_window(-5, 7) == 2
    with pytest.raises(H2ProtocolError) as broken:
        grown_window(1, frames.MAX_WINDOW_BYTES)
    assert broken.value.code is Code.FLOW_CONTROL_ERROR
