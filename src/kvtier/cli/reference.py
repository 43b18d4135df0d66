"""The command line's reference page, written from the commands themselves."""

import click

from kvtier.cli.main import kvtier

_WIDTH = 100


def render_markdown() -> str:
    """Return docs/reference/cli.md: the help of every command, in the order of `kvtier --help`."""
    sections = [
        "# Command line\n\n<!-- Written by scripts/render_reference.py; do not edit. -->\n\n"
        "The help of every command, as `kvtier COMMAND --help` prints it.\n"
    ]
    sections += [
        f"## {name}\n\n```text\n{text}\n```\n" for name, text in _helps(kvtier, "kvtier", None)
    ]
    return "\n".join(sections)


def _helps(
    command: click.Command, name: str, parent: click.Context | None
) -> list[tuple[str, str]]:
    context = command.context_class(
        command,
        info_name=name,
        parent=parent,
        terminal_width=_WIDTH,
        max_content_width=_WIDTH,
        **command.context_settings,
    )
    found = [(context.command_path, command.get_help(context).rstrip())]
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            sub = command.get_command(context, child)
            assert sub is not None, child
            found += _helps(sub, child, context)
    return found
