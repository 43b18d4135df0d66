"""The `kvtier` command: finds the sub-command, and turns errors into one line.

Why it exists: a command is one module of this room, imported only when it is called, so that
`kvtier --help` is quick and does not need an engine. Invariants: a wrong setting exits with 2
and one `error:` line on stderr, Ctrl-C with 130, and neither with a traceback.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Final

import click

from kvtier.errors import InvalidSettings, KVTierError

COMMANDS: Final[Mapping[str, str]] = {
    "serve": "Start vLLM with a prefix cache in RAM, on disk, in shared storage.",
    "config": "Show the settings in force, or a file with every option.",
    "doctor": "Say why engines do not share, or what is wrong with the settings.",
    "inspect": "Show what a shared folder or bucket holds.",
    "fsck": "Verify a shared folder or bucket, and put it in order.",
    "convert": "Convert trees of vLLM and llm-d into shared storage, and back.",
    "evict": "Keep a shared folder or bucket within its bounds.",
    "route": "Route OpenAI requests to the replica that has the prefix.",
    "epp": "Choose endpoints for Envoy and Kubernetes gateways.",
}
"""Name of the module in `kvtier.cli` that defines a command of that name, and what it does."""

EXTRAS: Final[Mapping[str, str]] = {"route": "router", "epp": "epp"}
"""Command to the extra of the package that its imports need."""

EXIT_WRONG_SETTING: Final = 2
EXIT_INTERRUPTED: Final = 130


class _Fault(click.ClickException):
    exit_code = EXIT_WRONG_SETTING

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)


class Commands(click.Group):
    """A group of commands that shows an error of ours as one line, and Ctrl-C as exit code 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. A KVTierError ends it with exit code 2, Ctrl-C with 130."""
        try:
            return super().invoke(ctx)
        except KVTierError as error:
            raise _Fault(str(error)) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


class LazyCommands(Commands):
    """Commands by the name of their module, which is imported when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `kvtier.cli.<name>` and take its attribute of that name."""
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
        """From the table: listing commands imports none of them."""
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
    """The prefix cache below the accelerator's memory: host RAM, local disk, shared storage."""


def main() -> None:
    """Entry point of the console script."""
    kvtier(prog_name="kvtier")
