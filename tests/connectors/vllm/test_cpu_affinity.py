"""kvtier's threads move to cores that the engine does not compute on."""

import os
import threading

import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm.v1.kv_offload.base")

from kvtier.connectors.vllm import cpu


def test_free_cores_of_unbound_engine_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    assert cpu.free_cores() == frozenset()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_free_cores_setter_moves_thread_off_engine_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    before = os.sched_getaffinity(0)
    core = min(before)
    found: list[set[int]] = []
    try:
        os.sched_setaffinity(0, {core})
        move = cpu.free_cores_setter()

        def work() -> None:
            move()
            found.append(os.sched_getaffinity(0))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert os.sched_getaffinity(0) == {core}
    finally:
        os.sched_setaffinity(0, before)
    assert found == [os.sched_getaffinity(os.getppid()) - {core}]
