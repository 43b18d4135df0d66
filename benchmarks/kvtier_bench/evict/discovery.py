"""The rule of llm-d's PVC evictor: files are removed in the order in which crawlers discover them.

The comparison needs the rule and not the program, which watches a volume as long as it runs and
supports only its own layout. The same as there: eight crawler processes share the folders by the
last hex digit of their names; they put files whose access time is older than an hour into a common
queue of 10,000; a crawler that finds the queue full waits 0.1 s and leaves the file for its next
round; one deleter takes batches of 100, checks that the files exist, and passes them to
`xargs -0 rm -f`. Different from there: it ends after removing a given number of files.

    python -m kvtier_bench.evict.discovery FOLDER FILES
"""

import multiprocessing
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

from kvtier.clock import MonotonicClock, wall_s

CRAWLERS: Final = 8
QUEUE_FILES: Final = 10_000
BATCH_FILES: Final = 100
OLD_S: Final = 3600.0
_FULL_PAUSE_S: Final = 0.1
_ROUND_PAUSE_S: Final = 1.0
_NOTHING_S: Final = 60.0


def main() -> None:
    """Remove FILES files below FOLDER."""
    folder, files = Path(sys.argv[1]), int(sys.argv[2])
    found: Queue[str] = multiprocessing.Queue(QUEUE_FILES)
    done = multiprocessing.Event()
    crawlers = [
        multiprocessing.Process(target=crawl, args=(folder, part, found, done))
        for part in range(CRAWLERS)
    ]
    for crawler in crawlers:
        crawler.start()
    try:
        delete(found, files)
    finally:
        done.set()
        for crawler in crawlers:
            crawler.join()


def crawl(folder: Path, part: int, found: "Queue[str]", done: Event) -> None:
    """Crawl one share of the folders, again and again, until `done` is set."""
    found.cancel_join_thread()
    clock = MonotonicClock()
    while not done.is_set():
        for path in _files(folder, part):
            if done.is_set():
                return
            try:
                accessed_s = path.stat().st_atime
            except OSError:
                continue
            if wall_s() - accessed_s < OLD_S:
                continue
            if found.qsize() >= QUEUE_FILES:
                clock.sleep(_FULL_PAUSE_S)
                continue
            try:
                found.put(str(path), timeout=1.0)
            except queue.Full:
                clock.sleep(_FULL_PAUSE_S)
        clock.sleep(_ROUND_PAUSE_S)


def delete(found: "Queue[str]", files: int) -> None:
    """Remove `files` files of the queue in batches. Raises queue.Empty if too few are old."""
    left = files
    while left:
        batch = [found.get(timeout=_NOTHING_S) for _ in range(min(BATCH_FILES, left))]
        there = [path for path in batch if Path(path).exists() and Path(path).stat()]
        names = "\0".join(there).encode()
        subprocess.run(["xargs", "-0", "rm", "-f"], input=names, check=True, capture_output=True)
        left -= len(there)


def _files(folder: Path, part: int) -> Iterator[Path]:
    share = 16 // CRAWLERS
    for below in os.scandir(folder):
        if int(below.name, 16) % 16 // share == part:
            for entry in os.scandir(below.path):
                if entry.is_file() and entry.name.endswith(".kvt"):
                    yield Path(entry.path)


if __name__ == "__main__":
    main()
