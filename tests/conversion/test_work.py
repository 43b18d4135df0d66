"""Running jobs: counts, limit and stop."""

import threading
from collections.abc import Iterator

import pytest

from kvtier.conversion import work
from kvtier.conversion.work import REFUSALS_KEPT, BlockResult, Conversion, ConversionJob, run_jobs
from kvtier.inspection.workers import Throttle


def conversion() -> Conversion:
    return Conversion(
        source="a", destination="b", to="kvtier", tree="t", system="s", space="n", unproven=[]
    )


def jobs(results: list[BlockResult]) -> Iterator[tuple[float, ConversionJob]]:
    for number, result in enumerate(results):
        yield number / len(results), lambda result=result: result


def run(results: list[BlockResult], limit: int | None = None) -> Conversion:
    report = conversion()
    run_jobs(jobs(results), report, Throttle(), lambda _report, _share: None, limit)
    return report


DONE = BlockResult("f", "converted", 10)


def test_run_jobs_counts_each_result_once() -> None:
    report = run([DONE] * 100 + [BlockResult("g", "existed")] * 50 + [BlockResult("h\n", "short")])
    assert (report.converted, report.bytes, report.existed) == (100, 1000, 50)
    assert report.refused == {"short": 1}
    assert report.refusals[0].file == "h\\n"
    assert report.complete


@pytest.mark.parametrize(("limit", "converted"), [(1, 1), (70, 70), (100, 100), (200, 100)])
def test_run_jobs_limit_counts_converted_blocks(limit: int, converted: int) -> None:
    report = run([BlockResult("g", "existed")] * 70 + [DONE] * 100, limit)
    assert report.converted == converted
    assert report.limited == (limit < 100)
    assert report.complete == (limit >= 100)


def test_run_jobs_stops_after_a_batch() -> None:
    report, throttle = conversion(), Throttle()
    run_jobs(jobs([DONE] * 500), report, throttle, lambda _report, _share: throttle.stop())
    assert 0 < report.converted < 500
    assert not report.complete


def test_run_jobs_leaves_unstarted_jobs_to_the_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job calls stop; the second, which runs already, is waited for."""
    monkeypatch.setattr(work, "THREADS", 1)
    waited = threading.Event()

    class Watched(Throttle):
        """Let the second job end once its result is waited for."""

        asked = 0

        @property
        def stopped(self) -> bool:
            if super().stopped and threading.current_thread() is threading.main_thread():
                self.asked += 1
                if self.asked > 2:
                    waited.set()
            return super().stopped

    throttle, report = Watched(), conversion()

    def first() -> BlockResult:
        throttle.stop()
        return DONE

    def second() -> BlockResult:
        waited.wait()
        return DONE

    all_jobs = [first, second, *[lambda: DONE] * 60]
    run_jobs(((0.0, job) for job in all_jobs), report, throttle, lambda _report, _share: None)
    assert report.converted == 2
    assert not report.complete


def test_run_jobs_raises_errors_of_the_destination() -> None:
    def refuse() -> BlockResult:
        raise OSError(28, "no space")

    with pytest.raises(OSError, match="no space"):
        run_jobs(iter([(0.0, refuse)]), conversion(), Throttle(), lambda _report, _share: None)


def test_report_counts_all_refusals_and_names_the_first() -> None:
    report = conversion()
    report.refuse("x", "unreadable", "no luck")
    for number in range(REFUSALS_KEPT):
        report.refuse(str(number), "short")
    assert report.refused == {"unreadable": 1, "short": REFUSALS_KEPT}
    assert report.refused_files == REFUSALS_KEPT + 1
    assert len(report.refusals) == REFUSALS_KEPT
    assert [each.reason for each in report.refusals[:2]] == ["no luck", "shorter than its block"]
