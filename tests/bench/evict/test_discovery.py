import os
import subprocess
import sys
from pathlib import Path

from kvtier_bench.evict.discovery import BATCH_FILES


def test_discovery_removes_the_given_number_of_old_files_only(tmp_path: Path) -> None:
    for number in range(300):
        folder = tmp_path / f"{number % 32:03x}"
        folder.mkdir(exist_ok=True)
        path = folder / f"{number}.kvt"
        path.write_bytes(b"x")
        if number % 3:
            os.utime(path, (1e9, 1e9))
    files = BATCH_FILES + 50
    command = [sys.executable, "-m", "kvtier_bench.evict.discovery", str(tmp_path), str(files)]
    subprocess.run(
        command, check=True, timeout=100, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    )
    left = [int(path.stem) for path in tmp_path.rglob("*.kvt")]
    assert len(left) == 300 - files
    assert {number for number in range(300) if number % 3 == 0} <= set(left)
