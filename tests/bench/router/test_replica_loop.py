import subprocess
import sys

_PROGRAM = """
import asyncio, sys
from kvtier_bench.router.replica import run_in_loop
async def main():
    await asyncio.sleep(0)
    return "done"
sys.path = [path for path in sys.path if {kept}]
print(run_in_loop(main()))
"""


def test_run_in_loop_returns_the_result_with_and_without_uvloop(monkeypatch) -> None:
    """Run it in a process of its own, because uvloop keeps a pipe open until the process ends."""
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    for kept in ("True", "'site-packages' not in path"):
        command = [sys.executable, "-c", _PROGRAM.format(kept=kept)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout == "done\n"
