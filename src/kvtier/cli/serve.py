"""`kvtier serve`: checks the settings, prints the plain vLLM command, and becomes that command."""

import os
import sys
from pathlib import Path

import click

from kvtier import settings
from kvtier.cli.flags import given, setting_flags
from kvtier.connectors.vllm import launch, versions
from kvtier.errors import InvalidSettings
from kvtier.settings import machine
from kvtier.tiers.disk import check_unused


@click.command(
    epilog="""\b
Example:
  kvtier serve ./SmolLM2-135M-Instruct --ram 20GiB --disk /mnt/nvme/kvtier=100GiB \\
      --port 8000 -- --max-model-len 8192 --enable-prompt-tokens-details
"""
)
@click.argument("model")
@setting_flags
@click.option("--port", metavar="PORT", help="Port that vLLM listens on.  [vLLM's default: 8000]")
@click.option("--dry-run", is_flag=True, help="Check the settings and print the command only.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM FLAGS...]")
def serve(
    *,
    model: str,
    file: str | None,
    port: str | None,
    dry_run: bool,
    arguments: tuple[str, ...],
    **flags: str | None,
) -> None:
    """Start vLLM serving MODEL, with a prefix cache in RAM, on disk and in shared storage.

    Checks the settings against this machine, prints the equivalent plain vLLM command, and then
    replaces itself with that command, so that signals reach vLLM directly. vLLM's own flags
    follow `--`. vLLM listens on 127.0.0.1 unless --host is among them.
    """
    if port is not None:
        if any(argument.partition("=")[0] == "--port" for argument in arguments):
            raise InvalidSettings("--port is given before and after `--`; keep one of them")
        arguments = ("--port", port, *arguments)
    extra = launch.read_transfer_config(arguments).get("kv_connector_extra_config")
    resolved = settings.resolve(extra, launch.TRANSFER_FLAG, file=file, flags=given(flags))
    machine.check(resolved.settings)
    if resolved.settings.disk is not None:
        check_unused(Path(resolved.settings.disk.path))
    launch.check_model(model)
    launch.check_port(arguments)
    versions.supported(versions.installed())
    command = launch.build_command(model, resolved, arguments, os.environ)
    click.echo("# the same without kvtier serve:", err=True)
    click.echo(launch.printable(command))
    if not dry_run:
        sys.stdout.flush()
        os.execv(command[0], command)
