from itertools import pairwise

from kvtier_bench.router.sim_trace import SegmentTokens, TraceShape, make_sessions

SHAPE = TraceShape(sessions=20, groups=3)


def test_turn_extends_the_prompt_of_the_turn_before() -> None:
    tokens = SegmentTokens()
    for session in make_sessions(SHAPE, 1):
        assert SHAPE.turns[0] <= len(session.turns) <= SHAPE.turns[1]
        for number, (before, after) in enumerate(pairwise(session.turns)):
            assert len(before.segments) == number + 2
            assert after.segments[: len(before.segments)] == before.segments
            # The next prompt contains the answer.
            grown = before.sizes[-1] + before.answer_tokens
            assert after.sizes[: len(before.sizes)] == (*before.sizes[:-1], grown)
            prompt = tokens.prompt(before)
            assert len(prompt) == before.tokens
            assert (tokens.prompt(after)[: before.tokens] == prompt).all()


def test_trace_depends_on_its_seed_only() -> None:
    assert list(make_sessions(SHAPE, 1)) == list(make_sessions(SHAPE, 1))
    assert list(make_sessions(SHAPE, 1)) != list(make_sessions(SHAPE, 2))


def test_sessions_share_only_their_system_prompt() -> None:
    tokens = SegmentTokens()
    first, *others = (session.turns[0] for session in make_sessions(SHAPE, 1))
    for other in others:
        alike = tokens.prompt(first)[:5000] == tokens.prompt(other)[:5000]
        same_group = first.segments[0] == other.segments[0]
        assert alike[:4000].all() == same_group
        assert alike[4000:].mean() < 0.01
