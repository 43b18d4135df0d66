import pytest

from kvtier.errors import InvalidSettings
from kvtier.settings.options import OPTIONS, REQUIRED, SECTIONS, Option

BY_NAME = {option.name: option for option in OPTIONS}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_option_parses_its_default_and_example(option: Option) -> None:
    assert option.about.text.endswith(".")
    example = option.parse(option.about.example, option.name)
    assert option.parse(option.format(example), option.name) == example
    if option.default is not REQUIRED:
        assert option.parse(option.format(option.default), option.name) == option.default
        assert example != option.default, "an example that is the default teaches nothing"


def test_option_has_name_variable_and_flag() -> None:
    option = BY_NAME["disk.io_threads"]
    assert (option.variable, option.flag) == ("KVTIER_DISK_IO_THREADS", "--disk-io-threads")
    for attribute in ("name", "variable", "flag"):
        names = [getattr(place, attribute) for place in (*OPTIONS, *SECTIONS.values())]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("disk.io_threads", "many", "'many' is not a whole number; write for example 8"),
        ("disk.io_threads", 1.5, "1.5 is not a whole number"),
        ("disk.io_threads", True, "True is not a whole number"),
        ("disk.io_threads", 0, "0 is too small; the minimum is 1"),
        ("transfer.promote_deadline", 0, "is too small; the minimum is 1ms"),
        ("disk.direct_io", "yes", "'yes' is not one of auto, always, never"),
        ("disk.direct_io", ["auto"], "is not one of auto, always, never"),
        ("disk.path", "", "'' is not a valid folder; write for example /mnt/nvme/kvtier"),
        ("disk.path", 7, "7 is not a valid folder"),
        ("ram.eviction", None, "None is not a valid eviction; write for example arc"),
    ],
)
def test_wrong_value_is_refused_with_place_and_fix(name: str, value: object, message: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        BY_NAME[name].parse(value, f"kvtier.yaml line 3: {name}")
    assert str(caught.value).startswith(f"kvtier.yaml line 3: {name}: ")
    assert message in str(caught.value)


def test_folder_is_made_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert BY_NAME["disk.path"].parse("~/cache/../kv", "x") == "/home/ada/kv"


def test_setting_in_one_line_form_expands() -> None:
    assert SECTIONS["ram"].expand("20GiB", "x") == {"capacity": "20GiB"}
    assert SECTIONS["disk"].expand("/a=b=1GB", "x") == {"path": "/a=b", "capacity": "1GB"}


@pytest.mark.parametrize(
    ("section", "value"), [("disk", "/path"), ("disk", "=1GB"), ("disk", 7), ("transfer", "5s")]
)
def test_invalid_one_line_form_is_refused(section: str, value: object) -> None:
    with pytest.raises(InvalidSettings, match=r"x: .* is not understood; write .*: "):
        SECTIONS[section].expand(value, "x")
