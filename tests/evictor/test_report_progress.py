import io

from rich.console import Console

from kvtier.evictor.report import ProgressLine, SilentObserver, progress_on


def test_progress_line_updates_on_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress_on(console) as observer:
        assert isinstance(observer, ProgressLine)
        observer.scanned("3", 256)
        for _ in range(50):
            observer.removed("bound", 1 << 20)
        assert observer.text == "256 files scanned, 50 removed, 50.0MiB freed"


def test_progress_is_silent_without_terminal() -> None:
    file = io.StringIO()
    with progress_on(Console(file=file)) as observer:
        assert isinstance(observer, SilentObserver)
        observer.scanned("3", 256)
        observer.removed("bound", 1)
    assert file.getvalue() == ""
