from kvtier.eviction.ghosts import Ghosts, fingerprint


def test_ghost_can_be_taken_once() -> None:
    ghosts = Ghosts()
    ghosts.add(7)
    assert ghosts.take(7)
    assert not ghosts.take(7)
    assert len(ghosts) == 0


def test_trim_removes_oldest_and_add_renews() -> None:
    ghosts = Ghosts()
    for ghost in (1, 2, 3, 1):
        ghosts.add(ghost)
    ghosts.trim(2)
    assert not ghosts.take(2)
    assert ghosts.take(3)
    assert ghosts.take(1)


def test_fingerprint_differs_between_groups() -> None:
    assert fingerprint(bytes(32) + b"\0\0\0\0") != fingerprint(bytes(32) + b"\0\0\0\1")
