import json
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvtier import settings
from kvtier.connectors.vllm.launch import (
    build_command,
    check_model,
    check_port,
    describe,
    printable,
    read_transfer_config,
)
from kvtier.errors import InvalidSettings

RAM = {"--ram": "1GiB"}


def transfer_config(command: list[str]) -> dict[str, Any]:
    assert command.count("--kv-transfer-config") == 1
    config = json.loads(command[command.index("--kv-transfer-config") + 1])
    assert isinstance(config, dict)
    return config


def test_the_command_is_vllm_with_our_spec() -> None:
    resolved = settings.resolve(env={}, flags={**RAM, "--disk": "/x=2GB"})
    command = build_command("org/model", resolved, ["--max-model-len", "8192"], {})
    assert command[:4] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    assert command[4:9] == ["org/model", "--host", "127.0.0.1", "--max-model-len", "8192"]
    assert transfer_config(command) == {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "KVTier",
            "spec_module_path": "kvtier.connectors.vllm.spec",
            "ram": "1GiB",
            "disk": {"path": "/x", "capacity": "2GB"},
        },
    }
    assert shlex.split(shlex.join(command)) == command


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--host=::1"], ["--uds", "/s"]])
def test_a_host_of_the_user_stays(arguments: list[str]) -> None:
    command = build_command("m", settings.resolve(env={}, flags=RAM), arguments, {})
    assert "127.0.0.1" not in command
    assert command[5 : 5 + len(arguments)] == arguments


@pytest.mark.parametrize("flag", ["--kv-transfer-config", "--kv_transfer_config"])
def test_a_transfer_config_of_the_user_is_kept_and_completed(flag: str) -> None:
    own = {
        "kv_connector": "OffloadingConnector",
        "engine_id": "e1",
        "kv_connector_extra_config": {"block_size": 256, "cpu_bytes_to_use": 2**30},
    }
    for arguments in ([flag, json.dumps(own)], [f"{flag}={json.dumps(own)}"]):
        extra = read_transfer_config(arguments)["kv_connector_extra_config"]
        resolved = settings.resolve(extra, "--kv-transfer-config", env={})
        command = build_command("m", resolved, [*arguments, "--seed", "1"], {})
        config = transfer_config(command)
        assert (config["engine_id"], config["kv_role"]) == ("e1", "kv_both")
        extra = config["kv_connector_extra_config"]
        assert extra["block_size"] == 256
        assert extra["ram"] == "1GiB"
        assert "cpu_bytes_to_use" not in extra
        assert command[7:9] == ["--seed", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kv-transfer-config", "{"], "not JSON"),
        (["--kv-transfer-config"], "the value is missing"),
        (["--kv-transfer-config", "[]"], "not a JSON object"),
        (["--kv-transfer-config", '{"kv_connector":"NixlConnector"}'], "'NixlConnector'.*remove"),
        (
            ["--kv-transfer-config", '{"kv_connector_extra_config":{"spec_name":"Other"}}'],
            "'Other'.*remove spec_name",
        ),
        (["--kv-transfer-config", '{"kv_connector_extra_config":7}'], "not a JSON object"),
        (["--kv-transfer-config.kv_role", "kv_both"], "as one JSON text"),
    ],
)
def test_a_transfer_config_that_cannot_be_merged_is_refused(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(InvalidSettings, match=f"--kv-transfer-config: .*{message}"):
        read_transfer_config(arguments)


@pytest.mark.parametrize(
    ("env", "flags"),
    [
        ({}, {"--disk": "/x=1GB", "--disk-io-threads": "8", "--transfer-drain": "250ms"}),
        ({"KVTIER_DISK": "/x=1GB"}, {"--disk": "none"}),
        ({"KVTIER_DISK": "/x=1GB", "KVTIER_RAM_EVICTION": "arc"}, {"--ram-eviction": "lru"}),
    ],
)
def test_what_is_described_is_what_the_engine_will_find(
    env: Mapping[str, str], flags: Mapping[str, str]
) -> None:
    resolved = settings.resolve(env=env, flags={**RAM, **flags})
    described = json.loads(json.dumps(describe(resolved, env)))
    assert settings.load(described, env=env) == resolved.settings


def test_a_file_that_the_engine_would_find_does_not_leak_in(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("disk: /other=1GB\ntransfer: {drain: 9s}\n")
    chosen = tmp_path / "chosen.yaml"
    chosen.write_text("ram: 1GiB\n")
    env = {"KVTIER_CONFIG": str(other)}
    resolved = settings.resolve(env=env, file=str(chosen))
    assert settings.load(describe(resolved, env), env=env) == resolved.settings


def test_models_are_folders_files_or_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    for model in (str(tmp_path), str(tmp_path / "config.json"), "org/model-1.5", "gpt2"):
        check_model(model)


@pytest.mark.parametrize("model", ["/absent/model", "./absent", "a/b/c", "~/absent", "a model"])
def test_a_model_that_is_neither_is_refused(model: str) -> None:
    with pytest.raises(InvalidSettings, match=f"MODEL: {model} does not exist; name a model"):
        check_model(model)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"MODEL: .* holds no config\.json"):
        check_model(str(tmp_path))


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for arguments in (["--port", port], ["--port=1", f"--port={port}"]):
            with pytest.raises(InvalidSettings, match=f"--port: {port} on 127.0.0.1 is in use"):
                check_port(arguments)
        check_port(["--port", port, "--uds", "/socket"])
    check_port(["--port", port])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "http"], "--port: 'http' is not a port"),
        (["--port", "0"], "--port: '0' is not a port"),
        (["--port", "65536"], "--port: '65536' is not a port"),
        (["--port"], "--port: the value is missing"),
        (["--host", "192.0.2.1"], "--host: cannot listen on 192.0.2.1:8000"),
    ],
)
def test_where_nothing_can_listen_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        check_port(arguments)


def test_credentials_are_not_shown() -> None:
    command = ["python", "--api-key", "one", "two", "--hf_token=three", "--port", "80"]
    shown = printable(command)
    assert not any(secret in shown for secret in ("one", "two", "three"))
    assert shlex.split(shown)[-2:] == ["--port", "80"]
    assert printable(["python", "--model", "a b"]) == "python --model 'a b'"
