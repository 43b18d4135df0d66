import json
import os
import signal
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvtier.blocks.key import BlockKey
from kvtier.cli.main import kvtier
from kvtier.conversion.work import ConversionJob
from kvtier.inspection.workers import Throttle
from tests.conversion.foreign import NAME, TreeFolder, chain, make_space, vllm_fields


@pytest.fixture
def tree(tmp_path: Path) -> TreeFolder:
    make_space(tmp_path / "kv")
    return TreeFolder(tmp_path / "vllm", vllm_fields()).fill(chain(200))


def run(tree: TreeFolder, *arguments: str) -> Result:
    return CliRunner().invoke(
        kvtier, ["convert", str(tree.root), str(tree.root.parent / "kv"), *arguments]
    )


def test_convert_reports_blocks_and_what_was_taken_on_trust(tree: TreeFolder) -> None:
    ran = run(tree, "--space", NAME)
    assert ran.exit_code == 0
    assert "200 blocks converted" in ran.stdout
    assert "not recorded in the tree, taken on your word: engine, hash_algorithm" in ran.stdout
    ran = run(tree, "--space", NAME)
    assert "0 blocks converted" in ran.stdout
    assert "200 already there" in ran.stdout


def test_convert_json_is_only_output(tree: TreeFolder) -> None:
    ran = run(tree, "--space", f"kv/{NAME}/", "--dry-run", "--json", "--limit", "7")
    assert ran.exit_code == 0
    report = json.loads(ran.stdout)
    assert (report["converted"], report["dry_run"], report["limited"]) == (7, True, True)
    assert not (tree.root.parent / "kv" / NAME / "blocks").exists()


def test_convert_names_refused_files_and_exits_with_1(tree: TreeFolder) -> None:
    tree.write(chain(1)[0], b"short")
    ran = run(tree, "--space", NAME)
    assert ran.exit_code == 1
    assert "shorter than its block" in ran.stdout
    assert "1 refused; 1 short" in ran.stdout


def test_convert_refuses_differing_sides_and_writes_nothing(tmp_path: Path) -> None:
    make_space(tmp_path / "kv")
    other = TreeFolder(tmp_path / "vllm", vllm_fields(dtype="float16", blocks_per_file=4))
    other.fill(chain(3))
    ran = run(other, "--space", NAME)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert "blocks_per_file: 4 in the tree" in ran.stderr
    assert "dtype: 'float16' != 'bfloat16'" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_convert_requires_key_space(tree: TreeFolder) -> None:
    ran = run(tree)
    assert ran.exit_code == 2
    assert NAME in ran.stderr


def test_convert_stopped_by_signal_leaves_whole_blocks_and_resumes(
    tree: TreeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvtier.conversion.importing import Importer

    real = Importer._job
    before = signal.getsignal(signal.SIGINT)

    def job(self: Importer, name: str, key: BlockKey, size: int) -> ConversionJob:
        asked.append(name)
        if len(asked) == 100:  # the first batch is done by then
            os.kill(os.getpid(), signal.SIGINT)
            stopped.wait(60)
        return real(self, name, key, size)

    asked: list[str] = []
    stopped, stop = threading.Event(), Throttle.stop

    def stop_and_tell(throttle: Throttle) -> None:
        stop(throttle)
        stopped.set()

    monkeypatch.setattr(Importer, "_job", job)
    monkeypatch.setattr(Throttle, "stop", stop_and_tell)
    ran = run(tree, "--space", NAME)
    assert ran.exit_code == 130
    assert "stopped; run the same command again to resume" in ran.stdout
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    written = list((tree.root.parent / "kv").rglob("*.kvt"))
    assert 0 < len(written) < 200
    ran = run(tree, "--space", NAME)
    assert ran.exit_code == 0
    assert f"{len(written)} already there" in ran.stdout
