import importlib
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from kvtier.cli.main import COMMANDS, EXTRAS, LazyCommands, kvtier


def walk(command: click.Command, *path: str) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            found += walk(below, *path, name)
    return found


@pytest.mark.parametrize("path", walk(kvtier), ids=" ".join)
def test_help_has_example(path: tuple[str, ...]) -> None:
    ran = CliRunner().invoke(kvtier, [*path, "--help"])
    assert ran.exit_code == 0
    assert "Example" in ran.output
    assert f"  kvtier {' '.join(path)}".rstrip() in ran.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_defined_in_its_module(name: str) -> None:
    module = importlib.import_module(f"kvtier.cli.{name}")
    assert isinstance(getattr(module, name), click.Command)


def test_help_imports_no_command() -> None:
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom kvtier.cli.main import kvtier\n"
            "kvtier(['--help'], standalone_mode=False)\n"
            "print(sorted(name for name in sys.modules if name.startswith('kvtier.')))",
        ],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "serve" in ran.stdout
    loaded = [
        "kvtier.cli",
        "kvtier.cli.main",
        "kvtier.cli.process",
        "kvtier.clock",
        "kvtier.errors",
    ]
    assert ran.stdout.endswith(f"{loaded}\n")


def test_version_is_printed() -> None:
    ran = CliRunner().invoke(kvtier, ["--version"])
    assert (ran.exit_code, ran.output[:7]) == (0, "kvtier ")


def test_unknown_command_is_usage_error() -> None:
    ran = CliRunner().invoke(kvtier, ["srve"])
    assert ran.exit_code == 2
    assert "No such command" in ran.stderr


class Interrupted(LazyCommands):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        @click.command()
        def wait() -> None:
            raise KeyboardInterrupt

        return wait


def test_interrupt_is_one_line_and_exit_code_130() -> None:
    ran = CliRunner().invoke(Interrupted("kvtier"), ["wait"])
    assert (ran.exit_code, ran.output) == (130, "interrupted\n")


@pytest.mark.parametrize("command", EXTRAS)
def test_command_without_its_extra_names_what_to_install(command: str) -> None:
    program = "import sys; sys.modules['aiohttp'] = None\nfrom kvtier.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, command, "--help"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    expected = f"error: kvtier {command} needs aiohttp: pip install 'kvtier[{EXTRAS[command]}]'\n"
    assert result.stderr == expected
