"""The `kvtier` command: imports the requested subcommand and reports errors in one line.

Each subcommand is a module of this package that is imported only when it is called, so that
`kvtier --help` is fast and needs no optional dependency. Invariants: an invalid setting exits
with code 2 and one `error:` line on stderr, Ctrl-C with code 130; neither prints a traceback.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Final

import click

from kvtier.cli.process import EXIT_INTERRUPTED, exit_process, interrupt_on_sigint
from kvtier.errors import InvalidSettings, KVTierError

COMMANDS: Final[Mapping[str, str]] = {
    "serve": "Start vLLM with a prefix cache in RAM, on disk and in shared storage.",
    "config": "Show the settings in force, or an example file with every option.",
    "doctor": "Explain why engines do not share blocks; check settings and machine.",
    "inspect": "Show what a shared folder or bucket holds.",
    "fsck": "Verify a shared folder or bucket, and repair it.",
    "convert": "Convert the blocks of vLLM's fs tier and of llm-d, and back.",
    "evict": "Keep a shared folder or bucket within its bounds.",
    "route": "Route OpenAI requests to the replica that holds the prefix.",
    "epp": "Pick endpoints for Envoy and Kubernetes gateways.",
}
"""The commands and what they do. Each is defined in the module of `kvtier.cli` of its name."""

EXTRAS: Final[Mapping[str, str]] = {"route": "router", "epp": "epp"}
"""Command to the extra of the package that its imports need."""

EXIT_WRONG_SETTING: Final = 2


class _Fault(click.ClickException):
    exit_code = EXIT_WRONG_SETTING

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)


class Commands(click.Group):
    """A group of commands that turns a KVTierError and Ctrl-C into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. A KVTierError ends it with exit code 2, Ctrl-C with 130."""
        try:
            return super().invoke(ctx)
        except KVTierError as error:
            raise _Fault(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


class LazyCommands(Commands):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of COMMANDS."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `kvtier.cli.<name>` and return its attribute of that name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(f"kvtier.cli.{cmd_name}")
        except ModuleNotFoundError as error:
            if cmd_name not in EXTRAS or (error.name or "").startswith("kvtier"):
                raise
            raise InvalidSettings(
                f"kvtier {cmd_name} needs {error.name}: pip install 'kvtier[{EXTRAS[cmd_name]}]'"
            ) from error
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from COMMANDS, without importing any of them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    del param
    if value and not ctx.resilient_parsing:
        try:
            version = importlib.metadata.version("kvtier")
        except importlib.metadata.PackageNotFoundError:  # run from a source tree
            version = "(not installed)"
        click.echo(f"kvtier {version}")
        ctx.exit()


@click.group(
    cls=LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Example:
  kvtier serve ./SmolLM2-135M-Instruct --ram 20GiB --disk /mnt/nvme/kvtier=100GiB
""",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def kvtier() -> None:
    """A prefix cache for LLM engines, below the memory of the accelerator.

    kvtier keeps KV-cache blocks in host RAM, on local disks and in shared storage, and routes
    requests to the engine that already holds their prefix.
    """


def main() -> None:
    """Run the console script."""
    interrupt_on_sigint()
    try:
        kvtier(prog_name="kvtier")
    except SystemExit as leaving:
        exit_process(leaving.code if isinstance(leaving.code, int) else 0)
