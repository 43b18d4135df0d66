import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvtier.cli.main import kvtier
from kvtier.tiers.disk.folder import lock_folder
from kvtier.tiers.files import SystemCalls

SERVER = """
import json, os, sys
print(json.dumps({"pid": os.getpid(), "argv": sys.argv[1:]}))
sys.exit(7)
"""


def plant_engine(folder: Path, version: str) -> dict[str, str]:
    """Create a fake vllm that prints how it was started; return the environment that finds it."""
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for part in (package, package.parent, package.parent.parent):
        (part / "__init__.py").touch()
    (package / "api_server.py").write_text(SERVER)
    metadata = folder / f"vllm-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    kept = {name: text for name, text in os.environ.items() if not name.startswith("KVTIER_")}
    return {**kept, "PYTHONPATH": ":".join([str(folder), *sys.path])}


def start(
    arguments: list[str], env: dict[str, str], folder: Path
) -> tuple[subprocess.Popen[str], str, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", "from kvtier.cli.main import main; main()", "serve", *arguments],
        env=env,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stdout, stderr = process.communicate(timeout=60)
    return process, stdout, stderr


def invoke(
    arguments: list[str], folder: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> Result:
    """Run the command in this process, with a fake engine of that version."""
    plant_engine(folder / "site", version)
    monkeypatch.syspath_prepend(str(folder / "site"))
    monkeypatch.chdir(folder)
    return CliRunner().invoke(kvtier, ["serve", *arguments])


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_serve_prints_plain_command_and_becomes_it(tmp_path: Path, model: str) -> None:
    env = plant_engine(tmp_path / "site", "0.33.0")
    port = free_port()
    arguments = [model, "--ram", "1MiB", "--disk", "slab=1MB", "--port", port]
    process, stdout, stderr = start([*arguments, "--", "--seed", "1"], env, tmp_path)
    command, report = stdout.splitlines()
    started = json.loads(report)
    assert (process.returncode, started["pid"]) == (7, process.pid)
    assert stderr.startswith("# the same")
    assert started["argv"][:8] == [
        *("--model", model, "--host", "127.0.0.1", "--port", port, "--seed", "1"),
    ]
    extra = json.loads(started["argv"][-1])["kv_connector_extra_config"]
    assert extra["disk"] == {"path": str(tmp_path / "slab"), "capacity": "1MB"}
    plain = subprocess.run(
        ["sh", "-c", command], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert json.loads(plain.stdout)["argv"] == started["argv"]


def test_dry_run_starts_nothing(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [model, "--ram", "1MiB", "--port", free_port(), "--dry-run"]
    ran = invoke(arguments, tmp_path, "0.32.1", monkeypatch)
    assert ran.exit_code == 0
    assert len(ran.stdout.splitlines()) == 1
    assert not (tmp_path / "slab").exists()


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0.0", "unknown"])
def test_unsupported_engine_is_refused(
    tmp_path: Path, model: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [model, "--ram", "1MiB", "--port", free_port()]
    ran = invoke(arguments, tmp_path, version, monkeypatch)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"error: vllm {version} is not supported")
    assert ran.stderr.count("\n") == 1


def test_port_in_use_is_refused(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        arguments = [model, "--ram", "1MiB", "--port", port]
        ran = invoke(arguments, tmp_path, "0.32.0", monkeypatch)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == (
        f"error: --port: {port} on 127.0.0.1 is in use; stop its server, or choose another port\n"
    )


def test_disk_folder_in_use_is_refused_before_the_engine_starts(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = lock_folder(tmp_path / "slab", SystemCalls())
    arguments = [model, "--ram", "1MiB", "--disk", f"{tmp_path}/slab=1GiB", "--port", free_port()]
    ran = invoke(arguments, tmp_path, "0.32.0", monkeypatch)
    holder.close()
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert f"in use by process {os.getpid()};" in ran.stderr
    assert ran.stderr.count("\n") == 1


BAD_INPUT = {
    "no ram": ([], {}, "ram.capacity is not set", "--ram 20GiB"),
    "ambiguous size": (["--ram", "20G"], {}, "--ram: '20G' is not a size", "20GB"),
    "no size": ([], {"KVTIER_RAM": "much"}, "KVTIER_RAM: 'much' is not a size", "64GiB"),
    "no bytes": (["--ram", "0"], {}, "--ram: '0' is not a size", "64GiB"),
    "no disk bound": (["--ram", "1", "--disk", "/x"], {}, "--disk: '/x'", "/path=100GiB"),
    "unknown variable": (["--ram", "1"], {"KVTIER_DSK": "1"}, "KVTIER_DSK", "did you mean"),
    "no file": (["--config", "absent.yaml"], {}, "--config: absent.yaml", "cannot be read"),
    "unknown policy": (["--ram", "1", "--ram-eviction", "lur"], {}, "--ram-eviction", "arc, lru"),
    "no duration": (["--ram", "1", "--transfer-drain", "1d"], {}, "--transfer-drain", "250ms"),
    "more than the machine": (["--ram", "100PiB"], {}, "ram.capacity", "make it smaller"),
    "more than is free": (
        ["--ram", "1MiB", "--disk", "/tmp=8000PiB"],
        {},
        "disk.capacity: 8000.0PiB does not fit in /tmp",
        "make it smaller or free some space",
    ),
    "not writable": (
        ["--ram", "1MiB", "--disk", "/proc/kvtier=1MB"],
        {},
        "disk.path: /proc/kvtier is not writable",
        "name another path",
    ),
    "not a folder": (
        ["--ram", "1MiB", "--disk", "/dev/null=1MB"],
        {},
        "disk.path: /dev/null is not a folder",
        "name another path",
    ),
    "no port": (["--ram", "1MiB", "--port", "http"], {}, "--port: 'http'", "from 1 to 65535"),
    "port twice": (
        ["--ram", "1MiB", "--port", "1", "--", "--port=2"],
        {},
        "--port is given before and after",
        "keep one",
    ),
    "another connector": (
        ["--ram", "1MiB", "--", "--kv-transfer-config", '{"kv_connector":"NixlConnector"}'],
        {},
        "--kv-transfer-config: kv_connector is 'NixlConnector'",
        "remove the flag",
    ),
    "secondary tiers": (
        [
            *("--ram", "1MiB", "--", "--kv-transfer-config"),
            '{"kv_connector_extra_config":{"secondary_tiers":[{"type":"fs"}]}}',
        ],
        {},
        "--kv-transfer-config: secondary_tiers",
        '"disk": "/path=100GiB"',
    ),
}


@pytest.mark.parametrize(("arguments", "env", "names", "fix"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_serve_refuses_bad_input_with_setting_and_fix(
    model: str, arguments: list[str], env: dict[str, str], names: str, fix: str
) -> None:
    ran = CliRunner().invoke(kvtier, ["serve", model, *arguments], env=env)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert names in ran.stderr
    assert fix in ran.stderr


def test_missing_model_is_refused() -> None:
    ran = CliRunner().invoke(kvtier, ["serve", "/absent", "--ram", "1MiB"])
    assert ran.exit_code == 2
    assert ran.stderr == (
        "error: MODEL: /absent does not exist; name a model folder or a name such as org/model\n"
    )
