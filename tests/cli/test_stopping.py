import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvtier.cli.stopping import Stopper, stopping
from kvtier.errors import InvalidSettings
from kvtier.inspection.workers import Stopped

PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from kvtier.cli.main import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_stops_and_second_interrupts(number: int) -> None:
    before, asked = signal.getsignal(number), []
    with stopping(lambda: asked.append(number)) as received:
        signal.raise_signal(number)
        assert asked == received == [number]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_stopping_that_takes_long_says_how_to_end_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stopping(lambda: None):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(1.5)
    assert capsys.readouterr().err == "stopping; press Ctrl-C again to end at once\n"


def test_stopper_abandons_work_that_hangs() -> None:
    never, stopper = threading.Event(), Stopper()

    def hang() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        never.wait(60)

    begun_s = time.monotonic()
    with pytest.raises(Stopped):
        stopper.run(hang, "kvtier-hang", grace_s=0.5)
    never.set()
    assert time.monotonic() - begun_s < 30
    assert stopper.signal == signal.SIGTERM


def test_stopper_without_grace_waits_for_slow_work() -> None:
    assert Stopper().run(lambda: time.sleep(0.6), "kvtier-slow", grace_s=0) is None


def test_stopper_raises_an_error_of_the_work_unless_it_was_stopped() -> None:
    def fail() -> None:
        raise InvalidSettings("wrong")

    def fail_after_signal() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        raise InvalidSettings("the storage does not answer")

    with pytest.raises(InvalidSettings):
        Stopper().run(fail, "kvtier-fail")
    with pytest.raises(Stopped):
        Stopper().run(fail_after_signal, "kvtier-fail")


@pytest.mark.parametrize(
    "command",
    [
        ("doctor", "s3://bucket"),
        ("inspect", "s3://bucket"),
        ("fsck", "s3://bucket"),
        ("convert", "s3://bucket", "/none", "--space", "none"),
        ("evict", "s3://bucket", "--high", "1GiB"),
    ],
    ids=lambda command: command[0],
)
def test_interrupt_ends_command_whose_bucket_does_not_answer(
    tmp_path: Path, command: Sequence[str]
) -> None:
    """Also in a process that ignores SIGINT when it starts, as background jobs of a shell do."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        environment = {
            **{name: text for name, text in os.environ.items() if "proxy" not in name.lower()},
            "PYTHONPATH": ":".join(sys.path),
            "HOME": str(tmp_path),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
            connection.close()
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 130, errors
    assert output == ""
    assert "Traceback" not in errors
    assert "interrupted" in errors or "stopped before the storage answered" in errors
