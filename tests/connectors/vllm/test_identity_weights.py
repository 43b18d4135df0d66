import os
from pathlib import Path

import pytest

from kvtier.connectors.vllm import identity

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def checkpoint(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def large(path: Path, size: int, edits: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in edits.items():
            file.seek(offset)
            file.write(content)
    return path


BASE = {"config.json": b"{}", "model.safetensors": b"weights"}


def test_weights_digest_depends_on_config_and_weight_files(tmp_path: Path) -> None:
    first = identity.weights_digest(checkpoint(tmp_path / "a", BASE))
    assert identity.weights_digest(checkpoint(tmp_path / "b", BASE)) == first
    for name, change in {
        "config": {"config.json": b"{} "},
        "bytes": {"model.safetensors": b"Weights"},
        "size": {"model.safetensors": b"weights "},
        "another file": {"model-2.safetensors": b""},
    }.items():
        changed = checkpoint(tmp_path / name, BASE | change)
        assert identity.weights_digest(changed) != first, name


def test_weights_digest_ignores_other_files(tmp_path: Path) -> None:
    more = BASE | {"README.md": b"text", "tokenizer.json": b"{}"}
    assert identity.weights_digest(checkpoint(tmp_path / "a", BASE)) == identity.weights_digest(
        checkpoint(tmp_path / "b", more)
    )


def test_weights_digest_of_folder_without_weights_is_constant(tmp_path: Path) -> None:
    assert (
        identity.weights_digest(checkpoint(tmp_path, {"config.json": b"{}"})) == identity.NO_WEIGHTS
    )


SIZE = 300 * 1024**2


@pytest.mark.parametrize(
    "offset", [0, identity.EDGE_BYTES - 1, SIZE - 1, SIZE - identity.EDGE_BYTES]
)
def test_weights_digest_samples_both_ends_of_large_file(tmp_path: Path, offset: int) -> None:
    plain = identity.weights_digest(large(tmp_path / "a.safetensors", SIZE, {}))
    (tmp_path / "a.safetensors").unlink()
    assert identity.weights_digest(large(tmp_path / "a.safetensors", SIZE, {offset: b"x"})) != plain


def test_weights_digest_samples_middle_of_large_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    plain = identity.weights_digest(large(path, SIZE, {}))
    step = SIZE // identity.PIECES // 4
    seen = [
        identity.weights_digest(large(path, SIZE, {offset: b"x" * identity.PIECE_BYTES})) != plain
        for offset in range(identity.EDGE_BYTES, SIZE - identity.EDGE_BYTES, step)
    ]
    # A change of one piece is not always detected, a change of a whole tensor is.
    assert any(seen)
    edited = {0: b"", SIZE // 3: b"x" * (SIZE // identity.PIECES)}
    assert identity.weights_digest(large(path, SIZE, edited)) != plain


def test_weights_digest_reads_a_bounded_number_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "SAMPLED_BYTES", 1024**2)
    for number in range(20):
        large(tmp_path / f"{number}.safetensors", 10 * 1024**2, {})
    before = io_bytes()
    identity.weights_digest(tmp_path)
    # Reading /proc itself accounts for some of the bytes.
    assert io_bytes() - before < 1024**2 + 64 * 1024


def io_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def test_weights_digest_uses_content_hash_in_hub_cache(tmp_path: Path) -> None:
    blobs = checkpoint(tmp_path / "blobs", {"a" * 64: b"one", "b" * 64: b"two"})
    digests = []
    for folder, blob in (("x", "a"), ("y", "b"), ("z", "a")):
        snapshot = checkpoint(tmp_path / folder, {"config.json": b"{}"})
        os.symlink(blobs / (blob * 64), snapshot / "model.safetensors")
        digests.append(identity.weights_digest(snapshot))
    assert digests[0] == digests[2] != digests[1]
    (blobs / ("a" * 64)).write_bytes(b"ONE")
    assert identity.weights_digest(tmp_path / "x") == digests[0]


def hub(tmp_path: Path) -> Path:
    repository = tmp_path / "models--org--name"
    checkpoint(repository / "snapshots" / COMMIT, BASE)
    checkpoint(repository / "refs", {"main": COMMIT.encode(), "gone": b"f" * 40})
    return repository / "snapshots" / COMMIT


def test_find_checkpoint_resolves_hub_name_in_local_cache(tmp_path: Path) -> None:
    snapshot = hub(tmp_path)
    for revision in (None, "main", COMMIT):
        found = identity.find_checkpoint("org/name", revision, tmp_path)
        assert found == identity.Checkpoint("org/name", COMMIT, snapshot), revision


def test_find_checkpoint_of_snapshot_path_equals_hub_name(tmp_path: Path) -> None:
    snapshot = hub(tmp_path)
    elsewhere = tmp_path / "none"
    assert identity.find_checkpoint(str(snapshot), None, elsewhere) == identity.find_checkpoint(
        "org/name", None, tmp_path
    )


def test_find_checkpoint_of_absent_revision_has_no_folder(tmp_path: Path) -> None:
    hub(tmp_path)
    for revision in ("gone", "never"):
        assert identity.find_checkpoint("org/name", revision, tmp_path).folder is None, revision


def test_find_checkpoint_of_plain_folder_or_file(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", BASE)
    assert identity.find_checkpoint(str(folder), None, tmp_path) == (str(folder), "local", folder)
    file = folder / "model.safetensors"
    assert identity.find_checkpoint(str(file), "v1", tmp_path) == (str(file), "v1", file)
