import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from kvtier.cli.main import kvtier
from tests.evictor.scenes import TREE, block

SIZE = 64 << 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(40):
        path = tmp_path / block(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(SIZE))
        os.utime(path, (1e9 + number, 1e9 + number))
    os.sync()
    return tmp_path


def blocks(folder: Path) -> list[int]:
    return [number for number in range(40) if (folder / block(number)).exists()]


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(kvtier, ["evict", *map(str, arguments)], env=env)


def test_evict_once_frees_coldest_blocks(folder: Path) -> None:
    ran = run(folder, "--high", "2MiB", "--low", "1MiB", "--once")
    assert ran.exit_code == 0, ran.output
    assert TREE in ran.output.replace("\n", "")
    assert 12 <= len(blocks(folder)) <= 16
    assert blocks(folder)[-1] == 39
    assert blocks(folder)[0] >= 24


def test_evict_dry_run_changes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    ran = run(folder, "--high", "2MiB", "--low", "1MiB", "--dry-run", "--json")
    report = json.loads(ran.stdout)
    assert report["dry_run"]
    assert 24 <= report["freed_files"] <= 28
    assert len(blocks(folder)) == 40
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--high", "1MiB", "--low", "2MiB"], "--low: 2MiB is not below --high 1MiB"),
        (["--high", "8000TiB"], "--high: 7.8PiB is more than the file system has"),
        ([], "--high: nothing bounds the store"),
        (["--ttl", "72h", "--interval", "x"], "--interval: 'x'"),
        (["--ttl", "72h", "--interval", "0"], "--interval: 0 is not more than 0"),
        (["--ttl", "72h", "--key-file", "nowhere"], "--key-file: nowhere cannot be read"),
        (["--quota", "a-0123456789abcdef=1GiB"], "--quota: there is no folder a-0123456789abcdef"),
    ],
)
def test_evict_refuses_bad_input_in_one_line(
    folder: Path, arguments: list[str], named: str
) -> None:
    ran = run(folder, "--once", *arguments)
    assert ran.exit_code == 2
    assert f"error: {named}" in ran.output
    assert len(ran.output.splitlines()) == 1
    assert len(blocks(folder)) == 40


def test_evict_refuses_missing_folder_and_newer_format(folder: Path) -> None:
    assert "PATH: name the folder" in run("--once", "--ttl", "72h").output
    nowhere = run(folder / "nowhere", "--once", "--ttl", "72h")
    assert (nowhere.exit_code, "does not exist" in nowhere.output) == (2, True)
    (folder / TREE / "manifest.json").write_text('{"format": 2}')
    newer = run(folder, "--once", "--high", "1MiB")
    assert (newer.exit_code, "is of format 2" in newer.output) == (2, True)
    assert len(blocks(folder)) == 40


def test_evict_reads_variables_of_llm_d_evictor(folder: Path) -> None:
    env = {
        "PVC_MOUNT_PATH": str(folder.parent),
        "CACHE_DIRECTORY": folder.name,
        "CLEANUP_THRESHOLD": "0.000002",
        "TARGET_THRESHOLD": "0.000001",
        "DRY_RUN": "true",
        "NUM_CRAWLER_PROCESSES": "4",
    }
    ran = run("--json", env=env)
    assert ran.exit_code == 0, ran.output
    assert "ignored, because they have no effect in kvtier: NUM_CRAWLER_PROCESSES" in ran.stderr
    report = json.loads(ran.stdout)
    assert report["dry_run"]
    assert report["freed_files"] == 40
    wrong = run("--once", env={**env, "CLEANUP_THRESHOLD": "10", "TARGET_THRESHOLD": "20"})
    assert wrong.exit_code == 2
    assert "error: TARGET_THRESHOLD: 20 is not below CLEANUP_THRESHOLD 10" in wrong.output


def test_evict_publishes_events_of_removed_blocks(folder: Path) -> None:
    """The subscriber binds, so that it is connected before the first removal."""
    zmq = pytest.importorskip("zmq")
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, f"kv@{TREE}@".encode())
    socket.setsockopt(zmq.RCVTIMEO, 20_000)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    heard: list[list[bytes]] = []
    # A ZeroMQ socket subscribes only while it receives.
    listening = threading.Thread(target=lambda: heard.append(socket.recv_multipart()))
    listening.start()
    try:
        events = f"connect:tcp://127.0.0.1:{port}"
        flags = ["--high", "2MiB", "--low", "1MiB", "--max-delete-per-second", "20"]
        ran = run(folder, "--once", "--events", events, *flags)
        assert ran.exit_code == 0, ran.output
    finally:
        listening.join()
        context.destroy(linger=0)
    ((_, _, payload),) = heard
    (removed,) = msgspec.msgpack.decode(payload)[1]
    assert removed["type"] == "BlockRemoved"
    assert removed["block_hashes"]


def test_evict_refuses_invalid_events_endpoint_with_its_setting(folder: Path) -> None:
    wrong = run(folder, "--ttl", "72h", "--once", "--events", "5559")
    assert (wrong.exit_code, "error: --events: '5559' is not an endpoint" in wrong.output) == (
        2,
        True,
    )
    env = {
        "PVC_MOUNT_PATH": str(folder.parent),
        "CACHE_DIRECTORY": folder.name,
        "STORAGE_EVENTS_ENDPOINT": "5559",
    }
    wrong = run("--once", env=env)
    assert "error: STORAGE_EVENTS_ENDPOINT: '5559' is not an endpoint" in wrong.output
    assert len(blocks(folder)) == 40


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_evict_releases_leases_when_signaled(folder: Path, number: int, code: int) -> None:
    command = "from kvtier.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "evict", str(folder), "--high", "2MiB", "--json"],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert first["shards_owned"] == 17
    process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert not list((folder / "leases").glob("beat-*")), "others take over at once"
    assert len(blocks(folder)) < 40


def test_evictors_divide_shards_and_take_over_after_kill(folder: Path) -> None:
    """One evictor is killed; the other one takes over its shards."""
    command = "from kvtier.cli.main import main; main()"
    flags = ["--high", "2MiB", "--json", "--interval", "0.2s", "--lease", "1s"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", command, "evict", str(folder), *flags],
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(2)
    ]
    dying, staying = processes

    def owned(process: subprocess.Popen[str], wanted: range) -> None:
        assert process.stdout is not None
        until_s = time.monotonic() + 60
        while json.loads(process.stdout.readline())["shards_owned"] not in wanted:
            assert time.monotonic() < until_s

    try:
        owned(dying, range(8, 10))
        owned(staying, range(8, 10))
        dying.kill()
        owned(staying, range(17, 18))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
