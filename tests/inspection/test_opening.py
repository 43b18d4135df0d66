"""Opening a folder or bucket, and errors that name the command's argument."""

from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.opening import is_url, open_store, open_view


@pytest.mark.parametrize(
    ("place", "is_one"),
    [("s3://bucket/x", True), ("gs://bucket", True), ("/mnt/kv", False), ("s3", False)],
)
def test_is_url_recognizes_buckets(place: str, is_one: bool) -> None:
    assert is_url(place) == is_one


def test_open_view_of_folder_writes_nothing(tmp_path: Path) -> None:
    view = open_view(str(tmp_path))
    assert isinstance(view, FolderView)
    view.close()
    assert list(tmp_path.iterdir()) == []


def test_open_store_creates_the_folder(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "new"))
    store.put("a/b", b"x")
    store.close()
    assert (tmp_path / "new" / "a" / "b").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("", "SOURCE: empty"),
        ("none", "SOURCE: none does not exist"),
        ("file", "SOURCE: file is not a folder"),
        ("ftp://host/x", "SOURCE: 'ftp://host/x' is not a bucket's URL"),
        ("s3://key:secret@bucket/x", "SOURCE: a bucket's URL holds no credentials"),
    ],
)
def test_open_view_errors_name_the_argument(
    tmp_path: Path, place: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(InvalidSettings) as caught:
        open_view(place, "SOURCE")
    assert str(caught.value).startswith(error)
    assert "secret@" not in str(caught.value)


def test_open_store_errors_name_the_argument(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings, match=r"^DESTINATION: .*file is not a folder"):
        open_store(str(tmp_path / "file"), "DESTINATION")
    with pytest.raises(InvalidSettings, match=r"^DESTINATION: the parent folder"):
        open_store(str(tmp_path / "a" / "b"), "DESTINATION")


@pytest.mark.usefixtures("obstore_runtime", "plain_environment")
def test_bucket_that_cannot_be_used_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(variable, value)
    for opening in (open_view, open_store):
        with pytest.raises(InvalidSettings, match=r"^PATH: s3://bucket/x: .* cannot be reached"):
            opening("s3://bucket/x")
