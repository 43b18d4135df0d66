"""Each rule of the repository finds its violations, and passes correct code."""

from pathlib import Path

import pytest

from scripts import house_rules
from scripts.house_rules import Module, Violation, judge, repeated_classes, untested

ROOT = Path(__file__).resolve().parents[1]


def found(rule: str, text: str, path: str = "tiers/disk/log.py") -> list[str]:
    return [message for _, message in house_rules.RULES[rule](Module(path, text))]


def test_module_length_counts_lines() -> None:
    assert found("module_length", "x = 1\n" * 400) == []
    assert found("module_length", "x = 1\n" * 401) == ["401 lines, the limit is 400"]


@pytest.mark.parametrize("head", ["def f():", "async def f():", "class C:\n  def f(self):"])
def test_function_length_counts_from_def_to_last_line(head: str) -> None:
    body = "\n    x = 1"
    assert found("function_length", head + body * 69) == []
    assert found("function_length", head + body * 70) == ["f: 71 lines, the limit is 70"]


@pytest.mark.parametrize(
    "text",
    ["import pickle", "import os, marshal", "from shelve import open", "import cloudpickle as c"],
)
def test_dangerous_import_is_a_violation(text: str) -> None:
    assert len(found("dangerous_imports", text)) == 1
    assert found("dangerous_imports", "import msgspec\nfrom json import loads") == []


@pytest.mark.parametrize(
    "text",
    [
        "eval(line)",
        "exec(line)",
        "os.system(line)",
        "yaml.load(f)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "torch.load(f, weights_only=False)",
    ],
)
def test_dangerous_call_is_a_violation(text: str) -> None:
    assert len(found("dangerous_calls", text)) == 1


def test_safe_calls_are_permitted() -> None:
    safe = "yaml.safe_load(f)\nnp.load(f, allow_pickle=False)\nmodel.eval()\nast.literal_eval(x)"
    assert found("dangerous_calls", safe) == []


def test_bare_except_is_a_violation() -> None:
    assert len(found("bare_except", "try:\n  f()\nexcept:\n  pass")) == 1
    assert found("bare_except", "try:\n  f()\nexcept OSError:\n  pass") == []


@pytest.mark.parametrize(
    "text",
    [
        "row = block.tobytes()",
        "def f(view: memoryview):\n  view[0:4] = b'abcd'",
        "view = memoryview(buffer)\nview[:] = data",
        "view = memoryview(buffer).cast('B')\nview[4:] = data",
        "half = memoryview(buffer)[0:8]\nhalf[:4] = data",
        "memoryview(buffer)[:] = data",
        "class C:\n  def f(self):\n    self._view: memoryview = g()\n    self._view[0:1] = b'x'",
    ],
)
def test_copy_that_holds_the_interpreter_is_a_violation_on_the_data_path(text: str) -> None:
    for room in house_rules.DATA_PATH:
        assert len(found("interpreter_held", text, f"{room}/part.py")) == 1
    assert found("interpreter_held", text, "bench/part.py") == []


def test_numpy_slices_and_single_bytes_are_permitted() -> None:
    text = "def f(array: Array, view: memoryview):\n  array[0:4] = other\n  view[0] = 1"
    assert found("interpreter_held", text) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("tiers/utils.py", ""),
        ("helpers/disk.py", ""),
        ("cache/manager.py", ""),
        ("cache/core_v2.py", ""),
        ("cache/core.py", "class TierManager: ..."),
        ("cache/core.py", "class TieredCacheV2: ..."),
    ],
)
def test_empty_name_is_a_violation(path: str, text: str) -> None:
    assert len(found("empty_names", text, path)) == 1
    assert found("empty_names", "class TieredCache: ...", "cache/core.py") == []


@pytest.mark.parametrize(
    "text",
    [
        "from prometheus_client import Counter",
        "import prometheus_client\nhits = prometheus_client.Gauge('a', 'b')",
        "name = 'kvtier_hits_total'",
    ],
)
def test_metric_outside_its_package_is_a_violation(text: str) -> None:
    assert len(found("scattered_metrics", text)) == 1
    assert found("scattered_metrics", text, "metrics/engine.py") == []


def test_other_counters_and_similar_words_are_permitted() -> None:
    text = "from collections import Counter\nname = 'kvtier_thread'\n'reads kvtier_x_total here'"
    assert found("scattered_metrics", text) == []


def test_marker_of_unfinished_work_is_a_violation() -> None:
    for mark in ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"):
        assert len(found("unfinished", f"x = 1  # {mark}: later")) == 1
    assert found("unfinished", "TO" + "DOS") == []


def test_exception_permits_its_module_until_it_is_not_needed() -> None:
    culprit = Module("cache/manager.py", "")
    listed = {("empty_names", "cache/manager.py"): "reason"}
    assert [v.rule for v in judge([culprit], {})] == ["empty_names"]
    assert list(judge([culprit], listed)) == []
    assert [v.path for v in judge([Module("cache/core.py", "")], listed)] == ["cache/manager.py"]


def test_public_class_name_in_two_modules_is_a_violation() -> None:
    tier = Module("tiers/base.py", "class Tier: ...\nclass _Queue: ...")
    other = Module("cache/core.py", "class Tier: ...\nclass _Queue: ...")
    [violation] = repeated_classes([tier, other])
    assert (violation.rule, violation.path, violation.line) == ("repeated_class", other.path, 1)
    assert "tiers/base.py" in violation.message
    assert list(repeated_classes([tier])) == []


def broken(modules: list[Module], tests: Path, allowed: dict[str, str]) -> list[Violation]:
    return list(untested(modules, tests, allowed))


@pytest.mark.parametrize("name", ["test_log.py", "disk/test_log_replay.py", "log/test_any.py"])
def test_untested_module_is_satisfied_by_a_test_of_its_name(tmp_path: Path, name: str) -> None:
    log = Module("tiers/disk/log.py", "")
    (tmp_path / "tiers").mkdir()
    assert len(broken([log], tmp_path, {})) == 1
    assert broken([log], tmp_path, {"tiers/disk/log.py": "reason"}) == []
    test = tmp_path / "tiers" / name
    test.parent.mkdir(parents=True, exist_ok=True)
    test.touch()
    assert broken([log], tmp_path, {}) == []
    assert len(broken([log], tmp_path, {"tiers/disk/log.py": "reason"})) == 1


def test_untested_exception_for_a_missing_module_is_a_violation(tmp_path: Path) -> None:
    assert len(broken([], tmp_path, {"tiers/gone.py": "reason"})) == 1


@pytest.mark.parametrize("path", ["tiers/base.py", "tiers/__init__.py", "testing/tiers.py"])
def test_untested_contract_package_or_suite_needs_no_test(tmp_path: Path, path: str) -> None:
    assert broken([Module(path, "")], tmp_path, {}) == []


def test_marker_of_unfinished_work_in_a_document_is_a_violation(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("fine\nTO" + "DO: write this\n")
    assert [str(v) for v in house_rules.unfinished_texts(tmp_path)] == [
        "docs/page.md:2: TO" + "DO: finish the work or remove the marker [unfinished]"
    ]
