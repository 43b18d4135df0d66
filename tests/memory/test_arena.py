import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvtier.blocks.layout import ALIGNMENT
from kvtier.errors import Closed, InvalidSettings
from kvtier.memory.arena import Arena

SLOTS = 4


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(SLOTS, ALIGNMENT)
    yield arena
    arena.close()


def python(code: str, **popen: object) -> subprocess.Popen[str]:
    """Start another process that runs `code` with the package on its path."""
    return subprocess.Popen(
        [sys.executable, "-c", "from kvtier.memory.arena import Arena\n" + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **popen,
    )


def test_allocate_is_all_or_nothing(arena: Arena) -> None:
    assert arena.allocate(SLOTS + 1) is None
    assert arena.free == SLOTS
    first = arena.allocate(3)
    assert first is not None
    assert len(set(first)) == 3
    assert arena.allocate(2) is None
    assert arena.free == 1
    assert arena.allocate(0) == []


def test_released_slots_are_reused_before_fresh_ones(arena: Arena) -> None:
    first = arena.allocate(2)
    assert first is not None
    arena.release(first)
    assert arena.free == SLOTS
    again = arena.allocate(3)
    assert again is not None
    assert set(first) < set(again)
    assert len(set(again)) == 3


def test_slots_are_aligned_apart_and_of_full_size(arena: Arena) -> None:
    for slot in range(SLOTS):
        view = arena.view(slot)
        assert view.shape == (ALIGNMENT,)
        assert view.ctypes.data % ALIGNMENT == 0
        view[:] = slot
    assert [int(arena.view(slot).sum()) for slot in range(SLOTS)] == [
        slot * ALIGNMENT for slot in range(SLOTS)
    ]


@pytest.mark.parametrize(
    ("slots", "slot_bytes"),
    [(0, ALIGNMENT), (1, 0), (1, 100), (-1, ALIGNMENT), (1 << 62, ALIGNMENT), (1 << 40, 1 << 20)],
)
def test_create_with_impossible_size_is_refused(slots: int, slot_bytes: int) -> None:
    with pytest.raises(InvalidSettings):
        Arena.create(slots, slot_bytes)


def test_attached_process_shares_the_bytes(arena: Arena) -> None:
    arena.view(2)[:4] = [1, 2, 3, 4]
    child = python(
        f"arena = Arena.attach({arena.handle!r})\n"
        "print(arena.view(2)[:4].tolist(), arena.slots, arena.slot_bytes)\n"
        "arena.view(3)[:] = 9\n"
        "arena.close()"
    )
    out, err = child.communicate(timeout=60)
    assert out.strip() == f"[1, 2, 3, 4] {SLOTS} {ALIGNMENT}", err
    assert int(arena.view(3).min()) == 9


OWNER = "arena = Arena.create(4, 4096)\nprint(arena.handle, flush=True)\ninput()"


def test_killed_owner_leaves_no_file_and_void_handle() -> None:
    before = set(os.listdir("/dev/shm"))
    child = python(OWNER)
    assert child.stdout is not None
    handle = child.stdout.readline().strip()
    attached = Arena.attach(handle)
    attached.view(1)[:] = 7
    child.kill()
    child.communicate(timeout=60)
    # Processes that mapped the arena keep its pages; new ones cannot attach, and no file is left.
    assert int(attached.view(1).min()) == 7
    attached.close()
    with pytest.raises(InvalidSettings, match="cannot be mapped"):
        Arena.attach(handle)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "kvtier" in name}


@pytest.mark.parametrize("handle", ["", "nonsense", "/proc/1/fd/0:x:y", "/nowhere:4:4096"])
def test_attach_with_invalid_handle_is_refused(handle: str) -> None:
    with pytest.raises(InvalidSettings):
        Arena.attach(handle)


def test_attach_refuses_descriptor_of_another_file(tmp_path: Path) -> None:
    other = tmp_path / "file"
    other.write_bytes(bytes(SLOTS * ALIGNMENT))
    with other.open("r+b") as file:
        handle = f"/proc/{os.getpid()}/fd/{file.fileno()}:{SLOTS}:{ALIGNMENT}"
        with pytest.raises(InvalidSettings, match="not an arena"):
            Arena.attach(handle)


def test_attach_refuses_handle_larger_than_memory(arena: Arena) -> None:
    path, _, _ = arena.handle.rsplit(":", 2)
    with pytest.raises(InvalidSettings):
        Arena.attach(f"{path}:{SLOTS * 2}:{ALIGNMENT}")


def test_population_backs_every_page() -> None:
    arena = Arena.create(1024, ALIGNMENT)
    assert arena.wait_populated(timeout_s=60)
    with open("/proc/self/smaps") as maps:
        area = maps.read().split("memfd:kvtier-arena", 1)[1]
    resident_kb = int(area.split("Rss:")[1].split()[0])
    assert resident_kb == 1024 * ALIGNMENT // 1024
    arena.close()


def test_closed_arena_raises_closed_and_closes_twice(arena: Arena) -> None:
    arena.close()
    arena.close()
    with pytest.raises(Closed):
        arena.view(0)
    with pytest.raises(Closed):
        _ = arena.array.shape


def test_view_survives_close_and_frees_mapping_with_it(arena: Arena) -> None:
    view = arena.view(1)
    view[:] = 5
    arena.close()
    assert int(view.sum()) == 5 * ALIGNMENT
    np.copyto(view, 6)
    del view
    with open("/proc/self/maps") as maps:
        assert "kvtier-arena" not in maps.read()
