"""The guard of the manager's methods: a bug disables the cache and never reaches the engine."""

import logging

import pytest

pytest.importorskip("vllm")

from kvtier.connectors.vllm.manager import do_nothing, guarded


class _Part:
    def __init__(self) -> None:
        self.is_broken = False
        self.calls = 0

    @guarded(lambda _: "miss")
    def answer(self, value: int) -> str:
        self.calls += 1
        if value < 0:
            raise AssertionError("state")
        return f"hit {value}"

    @guarded(do_nothing)
    def note(self) -> None:
        self.calls += 1


def test_guarded_method_returns_its_result() -> None:
    part = _Part()
    assert part.answer(3) == "hit 3"
    assert not part.is_broken


def test_guarded_failure_disables_all_methods_and_logs_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    part = _Part()
    with caplog.at_level(logging.ERROR):
        assert part.answer(-1) == "miss"
        assert part.answer(3) == "miss"
        part.note()
    assert part.is_broken
    assert part.calls == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "answer" in caplog.text
