"""Flags of the settings tree, the same for every command that reads settings.

Why it exists: flags are derived from `settings.options`, never written by hand. Shorthands
(`--ram`, `--disk`) come first in `--help`, because they are what most people need.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from kvtier.settings.options import OPTIONS, SECTIONS

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SHORTHANDS: Final = {
    "ram": ("SIZE", "Host memory for blocks."),
    "disk": ("PATH=SIZE", "Folder and bound of the disk tier, or `none`."),
    "shared": ("PATH", "Folder that all engines share, or `none`."),
    "objectstore": ("URL", "Bucket that all engines share, or `none`."),
}


def setting_flags(command: _Command) -> _Command:
    """Add `--config` and one flag per setting; the command takes them as `**flags`."""
    for option in reversed(OPTIONS):
        choices = f" [{', '.join(option.choices)}]" if option.choices else ""
        command = click.option(
            option.flag,
            _parameter(option.flag),
            metavar=option.about.kind.value.upper(),
            help=option.about.text + choices,
        )(command)
    for section in reversed(tuple(SECTIONS.values())):
        if section.name in _SHORTHANDS:
            form, text = _SHORTHANDS[section.name]
            command = click.option(
                section.flag,
                _parameter(section.flag),
                metavar=form,
                help=f"{text} Example: {section.shorthand}",
            )(command)
    return click.option(
        "--config", "file", metavar="FILE", help="YAML file of settings (or KVTIER_CONFIG)."
    )(command)


def given(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Flag -> text, for those that were given on the command line."""
    return {_flag(name): text for name, text in flags.items() if text is not None}


def _parameter(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _flag(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"
