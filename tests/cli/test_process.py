import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, sys
from kvtier.cli.process import run_server
async def main():
    print(type(asyncio.get_running_loop()).__module__.partition(".")[0])
    return 7
sys.modules.update({hidden})
print(run_server(main()))
"""


@pytest.mark.parametrize(("hidden", "found"), [("{}", "uvloop"), ("{'uvloop': None}", "asyncio")])
def test_run_server_uses_uvloop_if_installed(
    monkeypatch: pytest.MonkeyPatch, hidden: str, found: str
) -> None:
    """Run in a new process, because uvloop keeps a pipe open until the process ends."""
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    command = [sys.executable, "-c", PROGRAM.format(hidden=hidden)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [found, "7"]


def test_run_server_freezes_imported_objects() -> None:
    program = (
        "import gc\nfrom kvtier.cli.process import run_server\n"
        "async def main():\n    return int(gc.get_freeze_count() > 1000 < gc.get_threshold()[0])\n"
        "print(run_server(main()))\n"
    )
    command = [sys.executable, "-c", program]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["1"]
