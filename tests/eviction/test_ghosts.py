from kvtier.eviction.ghosts import Ghosts, fingerprint


def test_ghost_is_taken_once() -> None:
    ghosts = Ghosts()
    ghosts.add(7)
    assert ghosts.take(7)
    assert not ghosts.take(7)
    assert len(ghosts) == 0


def test_trim_drops_the_oldest_and_adding_again_makes_new() -> None:
    ghosts = Ghosts()
    for ghost in (1, 2, 3, 1):
        ghosts.add(ghost)
    ghosts.trim(2)
    assert not ghosts.take(2)
    assert ghosts.take(3)
    assert ghosts.take(1)


def test_groups_of_one_block_have_their_own_fingerprint() -> None:
    assert fingerprint(bytes(32) + b"\0\0\0\0") != fingerprint(bytes(32) + b"\0\0\0\1")
