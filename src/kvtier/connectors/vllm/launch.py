"""Builds the vLLM command that serves a model through kvtier, and checks its preconditions.

`kvtier serve` is a convenience: it runs the plain vLLM command built here, which works without
it. This module does not import vLLM, so that mistakes are reported within a second instead of
after the engine's imports.
"""

import errno
import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Final

from kvtier import settings
from kvtier.errors import InvalidSettings
from kvtier.settings.compat.vllm import ENGINE_KEYS
from kvtier.settings.layers import DEFAULT_ORIGIN, Resolved
from kvtier.settings.options import SECTIONS

SPEC: Final = {"spec_name": "KVTier", "spec_module_path": "kvtier.connectors.vllm.spec"}
"""The module path makes the command work where `VLLM_PLUGINS` excludes kvtier's entry point."""

TRANSFER_FLAG: Final = "--kv-transfer-config"
_DEFAULT_HOST: Final = "127.0.0.1"
_DEFAULT_PORT: Final = "8000"
_SECRET_FLAGS: Final = frozenset({"--api-key", "--hf-token"})
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def check_model(model: str) -> None:
    """Raise InvalidSettings unless `model` is a model folder, a file, or a hub name."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "params.json")):
            raise InvalidSettings(
                f"MODEL: {model} holds no config.json; name the folder of a model"
            )
    elif not path.exists() and (model[:1] in "/.~" or not _HUB_NAME.fullmatch(model)):
        raise InvalidSettings(
            f"MODEL: {model} does not exist; name a model folder or a name such as org/model"
        )


def check_port(arguments: Sequence[str]) -> None:
    """Raise InvalidSettings unless the server can listen on the host and port in vLLM's flags."""
    if _last(arguments, "--uds") is not None:  # a socket file needs no port
        return
    host = _last(arguments, "--host") or _DEFAULT_HOST
    text = _last(arguments, "--port") or _DEFAULT_PORT
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise InvalidSettings(f"--port: {text!r} is not a port; write a number from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, int(text), type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InvalidSettings(
                f"--port: {text} on {host} is in use; stop its server, or choose another port"
            ) from error
        reason = error.strerror or error
        raise InvalidSettings(f"--host: cannot listen on {host}:{text}: {reason}") from error


def read_transfer_config(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the user's own `--kv-transfer-config`, or an empty dict.

    Raises InvalidSettings if it is not JSON, or names another connector or another spec.
    """
    if any(_name(argument).startswith(f"{TRANSFER_FLAG}.") for argument in arguments):
        raise InvalidSettings(f"{TRANSFER_FLAG}: give it as one JSON text, not key by key")
    text = _last(arguments, TRANSFER_FLAG)
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InvalidSettings(f"{TRANSFER_FLAG}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidSettings(f"{TRANSFER_FLAG}: {text} is not a JSON object")
    connector = config.get("kv_connector", "OffloadingConnector")
    if connector != "OffloadingConnector":
        raise InvalidSettings(
            f"{TRANSFER_FLAG}: kv_connector is {connector!r}, and kvtier needs "
            "'OffloadingConnector'; remove the flag, or run vLLM without kvtier"
        )
    extra = config.get("kv_connector_extra_config", {})
    if not isinstance(extra, dict):
        raise InvalidSettings(f"{TRANSFER_FLAG}: kv_connector_extra_config is not a JSON object")
    if extra.get("spec_name", SPEC["spec_name"]) != SPEC["spec_name"]:
        raise InvalidSettings(
            f"{TRANSFER_FLAG}: spec_name is {extra['spec_name']!r}, and kvtier needs 'KVTier'; "
            "remove spec_name and spec_module_path"
        )
    return config


def build_command(
    model: str, resolved: Resolved, arguments: Sequence[str], env: Mapping[str, str]
) -> list[str]:
    """Return the command: this Python, vLLM's API server, the user's flags, kvtier's settings.

    It contains every setting of `resolved` that differs from its default, so that it works
    without kvtier's flags or file. `env` is the environment that the engine will have.
    """
    user = read_transfer_config(arguments)
    extra = user.get("kv_connector_extra_config", {})
    config = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        **user,
        "kv_connector_extra_config": {
            **{key: value for key, value in extra.items() if key in ENGINE_KEYS},
            **SPEC,
            **describe(resolved, env),
        },
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    if _last(arguments, "--host") is None and _last(arguments, "--uds") is None:
        command += ["--host", _DEFAULT_HOST]
    return [*command, *_without(arguments, TRANSFER_FLAG), TRANSFER_FLAG, json.dumps(config)]


def printable(command: Sequence[str]) -> str:
    """Return the command as shell text, with `***` in place of credentials, fit for a log."""
    shown: list[str] = []
    hide = False
    for argument in command:
        flag, is_pair, _ = argument.partition("=")
        # --api-key takes several values, up to the next flag.
        hide = _name(flag) in _SECRET_FLAGS if flag.startswith("--") else hide
        if hide and not flag.startswith("--"):
            shown.append("***")
        else:
            shown.append(f"{flag}=***" if hide and is_pair else argument)
    return shlex.join(shown)


def describe(resolved: Resolved, env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the settings as extra configuration: `{"ram": "20GiB", "disk": {...}}`.

    Defaults are omitted, unless a variable in `env` would override them in the engine.
    """
    given = {name for name, found in resolved.values.items() if found.origin != DEFAULT_ORIGIN}
    described = _describe(resolved, given)
    if settings.load(described, env=env) == resolved.settings:
        return described
    switched_off = {} if resolved.settings.disk else {"disk": None}
    return {**_describe(resolved, set(resolved.values)), **switched_off}


def _describe(resolved: Resolved, names: Set[str]) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for section in SECTIONS.values():
        fields = {
            option.field: option.format(resolved.values[option.name].value)
            for option in section.options
            if option.name in names
        }
        if fields:
            described[section.name] = fields["capacity"] if [*fields] == ["capacity"] else fields
    return described


def _name(argument: str) -> str:
    """Return the flag of `--flag=value`; vLLM accepts underscores for dashes."""
    return argument.partition("=")[0].replace("_", "-")


def _last(arguments: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag or None; of a repeated flag the last one, as argparse does."""
    value = None
    for place, argument in enumerate(arguments):
        if _name(argument) == flag:
            if "=" in argument:
                value = argument.partition("=")[2]
            elif place + 1 < len(arguments):
                value = arguments[place + 1]
            else:
                raise InvalidSettings(f"{flag}: the value is missing")
    return value


def _without(arguments: Sequence[str], flag: str) -> list[str]:
    kept = []
    values_to_skip = 0
    for argument in arguments:
        if values_to_skip:
            values_to_skip -= 1
        elif _name(argument) == flag:
            values_to_skip = int("=" not in argument)
        else:
            kept.append(argument)
    return kept
