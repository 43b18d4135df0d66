import numpy as np

from kvtier_bench.evict.pattern import HISTORY_S, WINDOWS, Pattern


def test_pattern_depends_on_its_seed_only() -> None:
    first, second, other = Pattern(500, 1), Pattern(500, 1), Pattern(500, 2)
    assert (first.history(10.0).read_age_s == second.history(10.0).read_age_s).all()
    drawn = first.draw(100)
    assert (drawn == second.draw(100)).all()
    assert (drawn != other.draw(100)).any()


def test_reads_follow_a_zipf_distribution() -> None:
    pattern = Pattern(1000, 3)
    counts = np.bincount(pattern.draw(100_000), minlength=1000)[pattern.by_popularity]
    assert counts[0] > counts[9] > counts[99]
    harmonic = sum(1 / rank for rank in range(1, 1001))
    assert abs(counts[0] / 100_000 - 1 / harmonic) < 0.01
    assert abs(counts[:10].sum() / 100_000 - sum(1 / r for r in range(1, 11)) / harmonic) < 0.01


def test_history_reads_written_files_only_and_keeps_the_last_read() -> None:
    pattern = Pattern(2000, 4)
    history = pattern.history(10.0)
    assert len(history.windows) == WINDOWS
    assert (history.read_age_s <= history.written_age_s).all()
    assert history.written_age_s.max() < HISTORY_S * 1.1
    last = history.windows[-1].files
    assert len(last)
    assert (history.read_age_s[last] == 10.0).all()
    told = {number for window in history.windows for number in window.files.tolist()}
    unread = set(range(2000)) - told
    assert unread
    for number in unread:
        assert history.read_age_s[number] == history.written_age_s[number]
