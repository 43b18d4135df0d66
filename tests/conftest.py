"""What every test gets: a check that nothing is left behind, and one Hypothesis profile.

Threads, descriptors and files in /dev/shm are compared before and after each unit test: three
listings, about 0.1 ms. Tests that start an engine are left out; an engine keeps what it likes.
"""

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.s3 import (  # noqa: F401  # fixtures, and the hook that stops the server
    bucket_client,
    bucket_url,
    obstore_runtime,
    own_s3,
    plain_environment,
    pytest_unconfigure,
    s3,
    s3_endpoint,
    s3_owner,
)

# gRPC makes descriptors anew in every process that forks; tests fork, and count descriptors.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Benchmarks start processes of their own package, which no wheel holds.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parents[1] / "benchmarks"), os.environ.get("PYTHONPATH")])
)

# `ci` gives every run the same examples; `explore` looks for new ones:
# HYPOTHESIS_PROFILE=explore make test
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", deadline=None, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

STAGES = ("engine", "e2e")
"""Folders of tests in the order in which they run; all others come after them."""

SETTLE_S = 10.0
"""Only a test that left something waits for so long; on a busy machine a thread ends late."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with the longest tests first, so that parallel workers end together."""
    items.sort(key=lambda item: _stage(item.path))
    for item in items:
        # An engine's own threads may end with an exception; that is not ours to judge.
        if item.get_closest_marker("engine") or item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.filterwarnings("default"))


def _stage(path: Path) -> int:
    return next((at for at, name in enumerate(STAGES) if name in path.parts), len(STAGES))


def open_descriptors() -> dict[str, str]:
    """Number -> target of every descriptor of this process."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make test` installs the engine and wants to hear if that did not work."""
    parser.addoption(
        "--require-engine", action="store_true", help="fail, not skip, without vLLM or the model"
    )


def shared_memory_files() -> set[str]:
    """Names in /dev/shm that could be ours; other processes come and go there too."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return set()
    return {name for name in os.listdir(folder) if "kvtier" in name}


def leftovers(
    threads: set[threading.Thread], descriptors: dict[str, str], shared: set[str]
) -> list[str]:
    """What is there now that was not there before."""
    alive = [t for t in threading.enumerate() if t not in threads and t.is_alive()]
    opened = [
        target for number, target in open_descriptors().items() if descriptors.get(number) != target
    ]
    return [
        *(f"thread {t.name}" for t in alive),
        *(f"descriptor {target}" for target in opened),
        *(f"/dev/shm/{name}" for name in sorted(shared_memory_files() - shared)),
    ]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands set up the process's logging; the next test's is its own."""
    loggers = [logging.getLogger(), logging.getLogger("kvtier")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread, a descriptor or a file in /dev/shm."""
    node = request.node
    if sys.platform != "linux" or {"engine", "soak"} & {m.name for m in node.iter_markers()}:
        yield
        return
    before = (set(threading.enumerate()), open_descriptors(), shared_memory_files())
    yield
    left = leftovers(*before)
    give_up_s = time.monotonic() + SETTLE_S
    while left and time.monotonic() < give_up_s:
        gc.collect()  # what only a cycle still holds is not a leak
        time.sleep(0.01)  # a thread that was told to stop may need a moment to be gone
        left = leftovers(*before)
    assert not left, "left behind: " + ", ".join(left)
