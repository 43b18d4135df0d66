from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.tiers.objectstore.client import SharedFile, check_variables, find_shared_file

FILE = """
# a comment
[default]
aws_access_key_id = DEFAULTKEY
aws_secret_access_key = default%secret/+=

[cache]
aws_access_key_id=CACHEKEY
aws_secret_access_key=cachesecret
aws_session_token=cachetoken

[half]
aws_access_key_id=HALFKEY
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "credentials"
    path.write_text(FILE)
    return path


def find(file: Path, **env: str) -> SharedFile | None:
    return find_shared_file({"AWS_SHARED_CREDENTIALS_FILE": str(file), **env})


def test_credentials_of_default_profile(file: Path) -> None:
    found = find(file)
    assert found is not None
    credential = found()
    assert credential["access_key_id"] == "DEFAULTKEY"
    assert credential["secret_access_key"] == "default%secret/+="
    assert credential["token"] is None


def test_credentials_of_named_profile(file: Path) -> None:
    found = find(file, AWS_PROFILE="cache")
    assert found is not None
    assert (found()["access_key_id"], found()["token"]) == ("CACHEKEY", "cachetoken")


def test_rotated_credentials_are_read_within_minutes(file: Path) -> None:
    found = find(file)
    assert found is not None
    expires_at = found()["expires_at"]
    assert expires_at is not None
    assert timedelta(0) < expires_at - datetime.now(UTC) < timedelta(minutes=15)
    file.write_text(FILE.replace("DEFAULTKEY", "NEWKEY"))
    assert found()["access_key_id"] == "NEWKEY"


def test_credentials_file_in_the_home_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_shared_file({}) is None
    (tmp_path / ".aws").mkdir()
    file.rename(tmp_path / ".aws" / "credentials")
    found = find_shared_file({})
    assert found is not None
    assert found()["access_key_id"] == "DEFAULTKEY"


@pytest.mark.parametrize(
    "source",
    ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"],
)
def test_other_credential_sources_precede_the_file(file: Path, source: str) -> None:
    assert find(file, **{source: "something"}) is None


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("none", "'none': there is no such profile; correct AWS_PROFILE"),
        ("half", "aws_secret_access_key is missing"),
    ],
)
def test_missing_or_incomplete_profile_is_refused(file: Path, profile: str, said: str) -> None:
    with pytest.raises(InvalidSettings, match=said) as caught:
        find(file, AWS_PROFILE=profile)
    assert str(file) in str(caught.value)
    assert "secret/+=" not in str(caught.value)


def test_missing_credentials_file_is_refused(file: Path) -> None:
    file.unlink()
    with pytest.raises(InvalidSettings, match=r"credentials: No such file .*; correct AWS_SHARED"):
        find(file)


@pytest.mark.parametrize("content", [b"hunter2", b"[default]\nhunter2\n", b"\xff\xfehunter2"])
def test_invalid_credentials_file_is_refused_without_its_content(
    file: Path, content: bytes
) -> None:
    file.write_bytes(content)
    with pytest.raises(InvalidSettings, match="is not a credentials file") as caught:
        find(file)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("value", ["key\n", " key", "k\ney", "key\r\n"])
def test_check_variables_refuses_line_breaks(value: str) -> None:
    with pytest.raises(InvalidSettings, match=r"^AWS_SECRET_ACCESS_KEY begins or ends") as caught:
        check_variables({"AWS_SECRET_ACCESS_KEY": value})
    assert "key" not in str(caught.value)
    check_variables({"AWS_SECRET_ACCESS_KEY": "key"})
    check_variables({})
