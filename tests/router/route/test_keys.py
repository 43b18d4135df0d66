from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.request.message import Fields
from kvtier.router.route.keys import ApiKeys, read_keys


def shown(name: str, value: str) -> Fields:
    return [(name.lower().encode(), value.encode("utf-8", "surrogateescape"))]


def test_api_keys_without_keys_admit_everyone() -> None:
    keys = ApiKeys([])
    assert not keys
    assert keys.admit(shown("Authorization", "Bearer whatever"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Authorization", "Bearer one"),
        ("authorization", "bearer two"),
        ("x-api-key", "two"),
        ("Authorization", "Bearer  one "),
    ],
)
def test_known_key_is_admitted(name: str, value: str) -> None:
    assert ApiKeys(["one", "two"]).admit(shown(name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Authorization", "Bearer"),
        ("Authorization", "Bearer on"),
        ("Authorization", "Bearer one,two"),
        ("Authorization", "Basic one"),
        ("Authorization", "one"),
        ("x-api-key", ""),
        ("Authorization", "Bearer \udcff"),
        ("Cookie", "one"),
    ],
)
def test_unknown_key_is_not_admitted(name: str, value: str) -> None:
    assert not ApiKeys(["one", "two"]).admit(shown(name, value))


def test_key_file_has_one_key_per_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# for the team\none\n\n two \nthree # of Ann\nfo#ur\t#x\n  # none\n")
    assert read_keys(str(file), "--api-keys") == ["one", "two", "three", "fo#ur"]


@pytest.mark.parametrize("text", ["one\ntwo words\n", "one # k\u00e4y\nk\u00e4y\n"])
def test_key_file_with_invalid_line_is_refused_with_its_number(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(InvalidSettings, match=r"--api-keys: .*keys line 2: a key is one word"):
        read_keys(str(file), "--api-keys")


@pytest.mark.parametrize("text", ["", "# only\n", "two words\n", "k\u00e4y\n"])
def test_key_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(InvalidSettings, match="--api-keys") as caught:
        read_keys(str(file), "--api-keys")
    assert "words" not in str(caught.value), "a key is never echoed"
    with pytest.raises(InvalidSettings, match="cannot be read"):
        read_keys(str(tmp_path / "none"), "--api-keys")
