import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier_bench import forkserver
from kvtier_bench.forkserver import ForkedProcess, ForkServer, ForkServerFailed
from kvtier_bench.processes import session_processes

STAND_IN = """
import os, sys
print("imported", os.getpid(), file=sys.stderr, flush=True)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    """A fork server that imports a stand-in for vLLM."""
    package = tmp_path / "path" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    path = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    with ForkServer(environment) as started:
        yield started


def run(server: ForkServer, folder: Path, program: str, **environment: str) -> ForkedProcess:
    script = folder / "program.py"
    script.write_text(textwrap.dedent(program))
    with (folder / "log").open("wb") as log:
        return server.script(
            script, ["one", "two"], environment=environment, stderr=log, pipes=True
        )


def read(process: ForkedProcess) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    with process.stdout:
        return process.stdout.read().decode()


def test_forked_program_sees_its_arguments_environment_and_name(
    server: ForkServer, tmp_path: Path
) -> None:
    program = """
        import os, sys
        print(__name__, sys.argv[1:], dict(os.environ), "vllm" in sys.modules)
        sys.exit(3)
    """
    process = run(server, tmp_path, program, COLOR="blue")
    assert read(process) == "__main__ ['one', 'two'] {'COLOR': 'blue'} True\n"
    assert process.wait(20) == 3
    assert process.poll() == 3


def test_forked_programs_share_one_import(server: ForkServer, tmp_path: Path) -> None:
    for _ in range(2):
        process = run(server, tmp_path, "import vllm; print(vllm.__name__)")
        assert read(process) == "vllm\n"
        assert process.wait(20) == 0
        assert (tmp_path / "log").read_text() == ""


def test_forked_program_forks_its_spawned_children(server: ForkServer, tmp_path: Path) -> None:
    program = """
        import multiprocessing
        print(multiprocessing.get_context("spawn").get_start_method())
    """
    process = run(server, tmp_path, program)
    assert read(process) == "fork\n"
    process.wait(20)


@pytest.mark.parametrize(
    ("variable", "places"), [("OMP_PLACES", "{{{core}}}"), ("GOMP_CPU_AFFINITY", "{core}")]
)
def test_forked_worker_obeys_openmp_settings_made_before_its_start(
    server: ForkServer, tmp_path: Path, variable: str, places: str
) -> None:
    core = min(os.sched_getaffinity(0))
    program = f"""
        import multiprocessing, os, sys, types

        def work(sender):
            sender.send((threads, sorted(os.sched_getaffinity(0))))

        threads = []
        sys.modules["torch"] = types.SimpleNamespace(set_num_threads=threads.append)
        receiver, sender = multiprocessing.Pipe()
        os.environ.update(OMP_NUM_THREADS="3", {variable}="{places.format(core=core)}")
        worker = multiprocessing.get_context("spawn").Process(target=work, args=(sender,))
        worker.start()
        print(receiver.recv())
        worker.join()
    """
    process = run(server, tmp_path, program)
    assert read(process) == f"([3], [{core}])\n"
    process.wait(20)


def test_forked_program_that_raises_exits_with_1_and_a_traceback(
    server: ForkServer, tmp_path: Path
) -> None:
    process = run(server, tmp_path, "raise ValueError('broken')")
    read(process)
    assert process.wait(20) == 1
    assert "ValueError: broken" in (tmp_path / "log").read_text()


def test_forked_program_runs_its_exit_handlers(server: ForkServer, tmp_path: Path) -> None:
    process = run(server, tmp_path, "import atexit; atexit.register(print, 'the end')")
    assert read(process) == "the end\n"
    process.wait(20)


def test_forked_program_that_is_killed_reports_the_signal(
    server: ForkServer, tmp_path: Path
) -> None:
    process = run(server, tmp_path, "import time; time.sleep(60)")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    read(process)


def test_forked_program_of_a_module_runs_as_main(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "path" / "a_program.py").write_text("print(__name__)")
    with (tmp_path / "log").open("wb") as log:
        process = server.module("a_program", [], environment={}, stderr=log)
    assert process.wait(20) == 0
    assert (tmp_path / "log").read_text() == "__main__\n"


def test_fork_server_that_closes_ends_its_children(server: ForkServer, tmp_path: Path) -> None:
    process = run(server, tmp_path, "import time; print('up', flush=True); time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    server.close()
    assert process.wait(20) < 0
    assert session_processes(process.pid) == []
    read(process)


def test_fork_server_whose_client_is_killed_ends_with_its_children(tmp_path: Path) -> None:
    client = """
        import os, sys, time
        from pathlib import Path
        from kvtier_bench.forkserver import ForkServer
        server = ForkServer()
        program = Path("sleeper.py")
        program.write_text("import time; time.sleep(60)")
        child = server.script(program, environment={}, stderr=open("log", "wb"))
        print(child.pid, flush=True)
        time.sleep(60)
    """
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(client)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout:
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
    give_up_s = time.monotonic() + 20
    while session_processes(child):
        assert time.monotonic() < give_up_s, "the child outlives its client"
        time.sleep(0.02)


def test_fork_server_that_closes_while_it_imports_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "vllm.py").write_text("import time; time.sleep(60)")
    server = ForkServer({**os.environ, "PYTHONPATH": str(tmp_path)}).start()
    started_s = time.monotonic()
    server.close()
    assert time.monotonic() - started_s < 10


def test_fork_server_whose_client_leaves_before_the_answer_ends_the_child(
    tmp_path: Path,
) -> None:
    (tmp_path / "vllm.py").touch()
    (tmp_path / "program.py").write_text("import time; time.sleep(60)")
    request = {"script": "program.py", "arguments": [], "environment": {}, "folder": str(tmp_path)}
    payload = json.dumps(request).encode()
    client, served = socket.socketpair()
    held, by_child = os.pipe()
    with client:
        socket.send_fds(client, [len(payload).to_bytes(4, "big")], [by_child])
        client.sendall(payload)
    os.close(by_child)
    with served:
        process = subprocess.Popen(
            [sys.executable, "-P", forkserver.__file__, str(served.fileno())],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}"},
            pass_fds=[served.fileno()],
        )
    assert process.wait(30) == 0
    with os.fdopen(held, "rb") as end:
        assert select.select([end], [], [], 20)[0], "the child outlives the fork server"


def test_fork_with_a_second_thread_is_refused(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "path" / "vllm" / "__init__.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    with pytest.raises(ForkServerFailed, match="2 threads"):
        run(server, tmp_path, "pass")


def test_fork_server_that_dies_is_reported_with_its_log(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "path" / "vllm" / "__init__.py").write_text("raise RuntimeError('no engine')")
    with pytest.raises(ForkServerFailed, match="no engine"):
        run(server, tmp_path, "pass")


def test_forked_program_can_be_ended_after_its_fork_server_was_killed(
    server: ForkServer, tmp_path: Path
) -> None:
    process = run(server, tmp_path, "import time; print('up', flush=True); time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert server._process is not None
    server._process.kill()
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    assert session_processes(process.pid) == []
    read(process)
    again = run(server, tmp_path, "print('again')")
    assert read(again) == "again\n"
    assert again.wait(20) == 0
