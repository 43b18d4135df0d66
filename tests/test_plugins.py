import subprocess
import sys
from pathlib import Path

import pytest

from kvtier import plugins
from kvtier.errors import InvalidSettings
from kvtier.eviction.lru import PLUGIN


def test_load_finds_plugin_by_module_name() -> None:
    assert plugins.load("eviction", "lru") is PLUGIN
    assert plugins.load("admission", "always").__name__ == "Always"


@pytest.mark.parametrize("name", ["lur", "base", "rows", "", "../lru", "lru.PLUGIN", "LRU"])
def test_unknown_name_is_refused_with_known_names(name: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        plugins.load("eviction", name)
    assert repr(name) in str(caught.value)
    assert "arc, lru" in str(caught.value)


def test_known_lists_plugins_only() -> None:
    known = plugins.known("eviction")
    assert {"lru", "arc"} <= set(known)
    assert "base" not in known
    assert list(known) == sorted(known)


OUTSIDER = """
from kvtier import plugins
from kvtier.errors import InvalidSettings
from kvtier.eviction.lru import PLUGIN
print(plugins.load("eviction", "newest").__name__)
print(plugins.load("eviction", "lru") is PLUGIN)
print("newest" in plugins.known("eviction"))
try:
    plugins.load("eviction", "broken")
except InvalidSettings as error:
    print(error)
"""


def test_installed_distribution_adds_plugins_and_replaces_none(tmp_path: Path) -> None:
    (tmp_path / "outsider.py").write_text("class Newest: ...\n")
    metadata = tmp_path / "outsider-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[kvtier.eviction]\nnewest = outsider:Newest\nlru = outsider:Newest\n"
        "broken = outsider:Absent\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", OUTSIDER],
        env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    name, built_in, listed, error = ran.stdout.splitlines()
    assert (name, built_in, listed) == ("Newest", "True", "True")
    assert "'broken' is installed as outsider:Absent but cannot be loaded" in error
