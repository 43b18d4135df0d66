"""The settings tree as a flat list of options, each with its names, its text and its parser.

Files, variables, flags, the reference and `config show` walk this list. Invariant: the list is
derived from `tree`, so a new field of a struct is a new setting everywhere.
"""

import os
import re
import typing
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.settings.sizes import format_duration, format_size, parse_duration, parse_size
from kvtier.settings.tree import (
    About,
    DiskSettings,
    ObjectStoreSettings,
    RamSettings,
    SettingKind,
    Settings,
    SharedSettings,
    TransferSettings,
)

REQUIRED: Final = msgspec.NODEFAULT
"""The default of an option that must be set."""

_PREFIX: Final = "KVTIER"


class Option(msgspec.Struct, frozen=True):
    """A setting: the field `field` of the tree's struct `section`."""

    section: str
    field: str
    about: About
    default: Any
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name in messages and in the reference, such as `disk.io_threads`."""
        return f"{self.section}.{self.field}"

    @property
    def variable(self) -> str:
        """The environment variable, such as `KVTIER_DISK_IO_THREADS`."""
        return f"{_PREFIX}_{self.section}_{self.field}".upper()

    @property
    def flag(self) -> str:
        """The flag, such as `--disk-io-threads`."""
        return f"--{self.section}-{self.field}".replace("_", "-")

    def parse(self, value: object, where: str) -> Any:
        """Return the value that the tree holds. Raises InvalidSettings that begins with `where`."""
        match self.about.kind:
            case SettingKind.SIZE:
                return parse_size(value, where)
            case SettingKind.DURATION:
                return self._at_least(parse_duration(value, where), where)
            case SettingKind.COUNT:
                return self._at_least(_count(value, where, self.about.example), where)
            case SettingKind.CHOICE:
                return _choice(value, where, self.choices)
            case SettingKind.FOLDER:
                return _absolute(self._text(value, where))
            case SettingKind.FILE:
                text = self._text("none" if value is None else value, where)
                return None if text == "none" else _absolute(text)
            case SettingKind.URL | SettingKind.EVICTION | SettingKind.ADMISSION:
                return self._text(value, where)

    def format(self, value: Any) -> str:
        """Return the text that `parse` reads as `value`."""
        match self.about.kind:
            case SettingKind.SIZE:
                return format_size(value)
            case SettingKind.DURATION:
                return format_duration(value)
            case _:
                return "none" if value is None else str(value)

    def _at_least(self, value: Any, where: str) -> Any:
        if value < self.about.minimum:
            least = self.format(type(value)(self.about.minimum))
            raise InvalidSettings(f"{where}: {value!r} is too small; the minimum is {least}")
        return value

    def _text(self, value: object, where: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise InvalidSettings(
                f"{where}: {value!r} is not a valid {self.about.kind.value}; "
                f"write for example {self.about.example}"
            )
        return value.strip()


class SettingsSection(msgspec.Struct, frozen=True):
    """A struct of the tree. `shorthand` is an example of its one-line form, if it has one."""

    name: str
    struct: type[msgspec.Struct]
    optional: bool
    shorthand: str | None

    @property
    def variable(self) -> str:
        """The variable that takes the one-line form, such as `KVTIER_DISK`."""
        return f"{_PREFIX}_{self.name}".upper()

    @property
    def flag(self) -> str:
        """The flag that takes the one-line form, such as `--disk`."""
        return f"--{self.name}"

    @property
    def options(self) -> tuple["Option", ...]:
        """The options of the section, in the order of its fields."""
        return tuple(_options(self))

    def expand(self, value: object, where: str) -> dict[str, object]:
        """Return the fields that a one-line form stands for, not yet parsed.

        `ram: 20GiB` is `{capacity: 20GiB}`, `disk: /path=100GiB` is `{path, capacity}`,
        `shared: /path` is `{path}`, `objectstore: s3://bucket` is `{url}`.
        """
        single = {RamSettings: "capacity", SharedSettings: "path", ObjectStoreSettings: "url"}.get(
            self.struct
        )
        if single is not None:
            return {single: value}
        if self.struct is DiskSettings and isinstance(value, str):
            path, separator, capacity = value.rpartition("=")
            if separator and path and capacity:
                return {"path": path, "capacity": capacity}
        form = f"{self.shorthand}, or " if self.shorthand else ""
        example = ", ".join(f"{option.field}: {option.about.example}" for option in self.options)
        raise InvalidSettings(f"{where}: {value!r} is not understood; write {form}{{{example}}}")


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _options(section: SettingsSection) -> list[Option]:
    hints = typing.get_type_hints(section.struct, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(section.struct):
        plain, about = typing.get_args(hints[field.name])
        choices = typing.get_args(plain) if typing.get_origin(plain) is typing.Literal else ()
        rows.append(Option(section.name, field.name, about, field.default, choices))
    return rows


def _count(value: object, where: str, example: str) -> int:
    if re.fullmatch(r"[0-9]{1,18}", str(value).strip()):
        return int(str(value))
    raise InvalidSettings(f"{where}: {value!r} is not a whole number; write for example {example}")


def _choice(value: object, where: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise InvalidSettings(f"{where}: {value!r} is not one of {', '.join(choices)}")
    return str(value)


SECTIONS: Final[Mapping[str, SettingsSection]] = {
    section.name: section
    for section in (
        SettingsSection("ram", RamSettings, False, "20GiB"),
        SettingsSection("disk", DiskSettings, True, "/path=100GiB"),
        SettingsSection("shared", SharedSettings, True, "/mnt/kv"),
        SettingsSection("objectstore", ObjectStoreSettings, True, "s3://bucket/prefix"),
        SettingsSection("transfer", TransferSettings, False, None),
    )
}
"""The sections by name, in the order of `Settings`."""

assert tuple(SECTIONS) == Settings.__struct_fields__

OPTIONS: Final[tuple[Option, ...]] = tuple(
    option for section in SECTIONS.values() for option in section.options
)
"""All settings, in the order of the tree."""
