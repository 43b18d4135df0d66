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
from tests.cases import case

RAM = {"--ram": "1GiB"}


def transfer_config(command: list[str]) -> dict[str, Any]:
    assert command.count("--kv-transfer-config") == 1
    config = json.loads(command[command.index("--kv-transfer-config") + 1])
    assert isinstance(config, dict)
    return config


def test_command_runs_vllm_with_kvtier_spec() -> None:
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


def test_host_given_by_the_user_is_kept() -> None:
    for arguments in (["--host", "0.0.0.0"], ["--host=::1"], ["--uds", "/s"]):
        with case(arguments):
            command = build_command("m", settings.resolve(env={}, flags=RAM), arguments, {})
            assert "127.0.0.1" not in command
            assert command[5 : 5 + len(arguments)] == arguments


@pytest.mark.parametrize("flag", ["--kv-transfer-config", "--kv_transfer_config"])
def test_transfer_config_of_the_user_is_completed(flag: str) -> None:
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


REJECTED_TRANSFER_CONFIGS = [
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
]


def test_transfer_config_that_cannot_be_merged_is_rejected() -> None:
    for arguments, message in REJECTED_TRANSFER_CONFIGS:
        expected = f"--kv-transfer-config: .*{message}"
        with case(arguments), pytest.raises(InvalidSettings, match=expected):
            read_transfer_config(arguments)


@pytest.mark.parametrize(
    ("env", "flags"),
    [
        ({}, {"--disk": "/x=1GB", "--disk-io-threads": "8", "--transfer-drain": "250ms"}),
        ({"KVTIER_DISK": "/x=1GB"}, {"--disk": "none"}),
        ({"KVTIER_DISK": "/x=1GB", "KVTIER_RAM_EVICTION": "arc"}, {"--ram-eviction": "lru"}),
    ],
)
def test_described_settings_load_to_the_same_settings(
    env: Mapping[str, str], flags: Mapping[str, str]
) -> None:
    resolved = settings.resolve(env=env, flags={**RAM, **flags})
    described = json.loads(json.dumps(describe(resolved, env)))
    assert settings.load(described, env=env) == resolved.settings


def test_described_settings_override_configuration_file(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("disk: /other=1GB\ntransfer: {drain: 9s}\n")
    chosen = tmp_path / "chosen.yaml"
    chosen.write_text("ram: 1GiB\n")
    env = {"KVTIER_CONFIG": str(other)}
    resolved = settings.resolve(env=env, file=str(chosen))
    assert settings.load(describe(resolved, env), env=env) == resolved.settings


def test_model_may_be_folder_file_or_hub_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    for model in (str(tmp_path), str(tmp_path / "config.json"), "org/model-1.5", "gpt2"):
        check_model(model)


def test_model_that_is_no_path_and_no_name_is_rejected() -> None:
    for model in ("/absent/model", "./absent", "a/b/c", "~/absent", "a model"):
        expected = f"MODEL: {model} does not exist; name a model"
        with case(model), pytest.raises(InvalidSettings, match=expected):
            check_model(model)


def test_folder_without_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"MODEL: .* holds no config\.json"):
        check_model(str(tmp_path))


def test_port_in_use_is_rejected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for arguments in (["--port", port], ["--port=1", f"--port={port}"]):
            with pytest.raises(InvalidSettings, match=f"--port: {port} on 127.0.0.1 is in use"):
                check_port(arguments)
        check_port(["--port", port, "--uds", "/socket"])
    check_port(["--port", port])


def test_port_or_host_that_cannot_be_used_is_rejected() -> None:
    for arguments, message in (
        (["--port", "http"], "--port: 'http' is not a port"),
        (["--port", "0"], "--port: '0' is not a port"),
        (["--port", "65536"], "--port: '65536' is not a port"),
        (["--port"], "--port: the value is missing"),
        (["--host", "192.0.2.1"], "--host: cannot listen on 192.0.2.1:8000"),
    ):
        with case(arguments), pytest.raises(InvalidSettings, match=message):
            check_port(arguments)


def test_printable_command_hides_credentials() -> None:
    command = ["python", "--api-key", "one", "two", "--hf_token=three", "--port", "80"]
    shown = printable(command)
    assert not any(secret in shown for secret in ("one", "two", "three"))
    assert shlex.split(shown)[-2:] == ["--port", "80"]
    assert printable(["python", "--model", "a b"]) == "python --model 'a b'"
