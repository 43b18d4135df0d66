"""`kvtier config`: shows the settings in force and where they come from, and all options."""

import click

from kvtier import settings
from kvtier.cli.flags import given, setting_flags
from kvtier.settings import reference


@click.group(
    epilog="""\b
Example:
  kvtier config example > kvtier.yaml
  KVTIER_RAM=20GiB kvtier config show --origin
"""
)
def config() -> None:
    """Show the settings in force, or an example file with every option."""


@config.command(
    epilog="""\b
Example:
  kvtier config show --config kvtier.yaml --disk none --origin
"""
)
@setting_flags
@click.option(
    "--origin", "with_origin", is_flag=True, help="Show the source of each value as a comment."
)
def show(file: str | None, with_origin: bool, **flags: str | None) -> None:  # noqa: FBT001
    """Print the settings in force as YAML.

    They are merged from defaults, the YAML file, KVTIER_ variables and flags; later ones win.
    """
    resolved = settings.resolve(file=file, flags=given(flags))
    render = reference.render_origins if with_origin else reference.render_values
    click.echo(render(resolved), nl=False)


@config.command(
    epilog="""\b
Example:
  kvtier config example > kvtier.yaml
"""
)
def example() -> None:
    """Print a settings file with every option, its default and an explanation."""
    click.echo(reference.render_yaml(), nl=False)
