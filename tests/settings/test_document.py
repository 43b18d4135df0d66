from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.settings.document import parse_document, read_document


def write(folder: Path, text: str) -> str:
    file = folder / "kvtier.yaml"
    file.write_text(text)
    return str(file)


def test_document_has_lines_of_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "# comment\nram:\n  capacity: 1GiB\n\ndisk: /x=2GB\n")
    document = read_document(path, "--config")
    assert document.data == {"ram": {"capacity": "1GiB"}, "disk": "/x=2GB"}
    assert document.where(("ram", "capacity")) == f"{path} line 3"
    assert document.where(("disk",)) == f"{path} line 5"
    assert document.where(("transfer",)) == path


def test_document_has_lines_of_list_items(tmp_path: Path) -> None:
    path = write(tmp_path, "plugins:\n- type: a\n- type: b\n  name: c\n")
    document = read_document(path, "--config")
    assert document.where(("plugins", "1")) == f"{path} line 3"
    assert document.where(("plugins", "1", "name")) == f"{path} line 4"
    with pytest.raises(InvalidSettings, match=r"line 2: plugins\.0\.a is set twice"):
        read_document(write(tmp_path, "plugins:\n- {a: 1, a: 2}\n"), "--config")


def test_document_inside_file_counts_lines_of_file() -> None:
    document = parse_document("a: 1\nb: 2\n", "values.yaml", first_line=10)
    assert document.where(("b",)) == "values.yaml line 11"
    with pytest.raises(InvalidSettings, match=r"values\.yaml line 11: not valid YAML"):
        parse_document("a: 1\n\tb: 2\n", "values.yaml", first_line=10)


def test_empty_file_has_no_settings(tmp_path: Path) -> None:
    assert read_document(write(tmp_path, "# nothing yet\n"), "--config").data == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ram: [1GiB", "line 1: not valid YAML"),
        ("ram: 1\n\tdisk: 2", "line 2: not valid YAML"),
        ("ram: 1GiB\nram: 2GiB", "line 2: ram is set twice"),
        ("ram:\n  capacity: 1\n  capacity: 2", "line 3: ram.capacity is set twice"),
        ("? [a, b]\n: 1", "line 1: a key must be plain text"),
        ("ram: !!python/object/apply:os.getcwd []", "line 1: not valid YAML"),
        ("ram: 2026-02-30", "not valid YAML"),
        ("ram: \x1f", "not valid YAML"),
        ("- ram", "and no settings; write `ram: 20GiB`"),
        ("64GiB", "and no settings"),
        ("ram: 1GiB\n---\nram: 2GiB", "line 2: not valid YAML"),
    ],
)
def test_broken_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidSettings) as caught:
        read_document(path, "--config")
    assert path in str(caught.value)
    assert message in str(caught.value)


def test_error_shows_example_of_caller(tmp_path: Path) -> None:
    path = write(tmp_path, "http://host:8000")
    with pytest.raises(InvalidSettings, match=r"and no settings; write `replicas: \[\]`"):
        read_document(path, "--replicas", "replicas: []")


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(InvalidSettings, match=f"--config: {path} cannot be read"):
            read_document(str(path), "--config")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidSettings, match="cannot be read"):
        read_document(str(binary), "--config")
