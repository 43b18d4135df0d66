"""The leak check reports each kind of leak, and passes clean tests and tests of engines."""

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).with_name("conftest.py")
CASES = """
import os, threading
import pytest

kept = []


def test_clean():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    os.close(os.open(os.devnull, os.O_RDONLY))


def test_thread():
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="forgotten", daemon=True)
    thread.start()


def test_descriptor():
    kept.append(open(os.devnull))


def test_replaced_descriptor(tmp_path):
    number = os.open(os.devnull, os.O_RDONLY)
    os.close(number)
    kept.append(os.open(tmp_path, os.O_RDONLY))


def test_shared_memory():
    kept.append(os.open("/dev/shm/kvtier-leak-NAME", os.O_CREAT | os.O_RDWR, 0o600))
    os.close(kept.pop())


@pytest.mark.engine
def test_engine():
    kept.append(open(os.devnull))
"""


def test_leak_check_reports_thread_descriptor_and_shared_memory(tmp_path: Path) -> None:
    # The copy of conftest.py waits less for leaks to end, which keeps this test short.
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text() + "\nSETTLE_S = 0.05\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  engine: x\n  soak: x\n")
    leak = Path(f"/dev/shm/kvtier-leak-{tmp_path.name}")
    (tmp_path / "test_cases.py").write_text(CASES.replace("kvtier-leak-NAME", leak.name))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    try:
        run = subprocess.run(
            command,
            cwd=tmp_path,
            # The copied conftest.py imports fixtures of the package `tests`.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(CONFTEST.parents[1]), *sys.path]),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        leak.unlink(missing_ok=True)
    assert "6 passed, 4 errors" in run.stdout, run.stdout + run.stderr
    for kind in ("thread forgotten", "descriptor /dev/null", "descriptor /", str(leak)):
        assert f"left behind: {kind}" in run.stdout, run.stdout
