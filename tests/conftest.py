"""Fixtures of every test: a check for leaks, unchanged logging, and the Hypothesis profiles.

The check compares threads, descriptors and files in /dev/shm before and after each unit test, which
takes about 0.1 ms. Tests that start an engine are exempt, because an engine may keep resources.
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

# With fork support, gRPC opens new descriptors at every fork, which the leak check would report.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Benchmarks start processes that import their own package, which is not in the wheel.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parents[1] / "benchmarks"), os.environ.get("PYTHONPATH")])
)

# `ci` uses the same examples in every run; `explore` generates new ones:
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
"""How long a test that left something behind may wait for it to end, as on a busy machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with the longest tests first, so that parallel workers end together."""
    items.sort(key=lambda item: _stage(item.path))
    for item in items:
        # An engine's own threads may end with an exception, which is no failure of the test.
        if item.get_closest_marker("engine") or item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.filterwarnings("default"))


def _stage(path: Path) -> int:
    return next((at for at, name in enumerate(STAGES) if name in path.parts), len(STAGES))


def open_descriptors() -> dict[str, str]:
    """Return the target of every descriptor of this process, by number."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--require-engine`, which `make test` uses after it has installed the engine."""
    parser.addoption(
        "--require-engine",
        action="store_true",
        help="fail instead of skipping tests if vLLM or the model is missing",
    )


def shared_memory_files() -> set[str]:
    """Return the names in /dev/shm that kvtier may have created; other processes use it too."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return set()
    return {name for name in os.listdir(folder) if "kvtier" in name}


def leftovers(
    threads: set[threading.Thread], descriptors: dict[str, str], shared: set[str]
) -> list[str]:
    """Return the threads, descriptors and files that exist now and did not before."""
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
def restored_logging() -> Iterator[None]:
    """Restore the logging configuration after a test, because commands change it."""
    loggers = [logging.getLogger(), logging.getLogger("kvtier")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
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
        gc.collect()  # objects in reference cycles are no leaks
        time.sleep(0.01)  # a thread that was told to stop may need a moment to end
        left = leftovers(*before)
    assert not left, "left behind: " + ", ".join(left)
