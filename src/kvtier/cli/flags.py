"""The flags of the settings tree, shared by all commands that read settings.

Flags are derived from `settings.options` and never written by hand. The shorthands (`--ram`,
`--disk`, ...) come first in `--help`, because most users need no others.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from kvtier.settings.options import OPTIONS, REQUIRED, SECTIONS, Option

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SHORTHANDS: Final = {
    "ram": ("SIZE", "Host memory for blocks."),
    "disk": ("PATH=SIZE", "Folder and size limit of the disk tier, or `none`."),
    "shared": ("PATH", "Folder that all engines share, or `none`."),
    "objectstore": ("URL", "Bucket that all engines share, or `none`."),
}


def setting_flags(command: _Command) -> _Command:
    """Add `--config` and one flag per setting; the command takes them as `file` and `**flags`."""
    for option in reversed(OPTIONS):
        command = click.option(
            option.flag,
            _parameter(option.flag),
            metavar="|".join(option.choices) or option.about.kind.value.upper(),
            help=f"{option.about.text}  [default: {_default(option)}]",
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
        "--config",
        "file",
        metavar="FILE",
        help="YAML file of settings; `kvtier config example` prints one.  [$KVTIER_CONFIG]",
    )(command)


def given(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Return the flags that were given on the command line, with their texts."""
    return {_flag(name): text for name, text in flags.items() if text is not None}


def _default(option: Option) -> str:
    if option.default is not REQUIRED:
        return option.format(option.default)
    return "none, required" if option.section == "ram" else f"none, required by --{option.section}"


def _parameter(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _flag(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"
