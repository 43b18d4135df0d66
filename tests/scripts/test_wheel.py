"""The wheel installs into an empty environment and works there without extras."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from kvtier.cli.main import COMMANDS, EXTRAS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    subprocess.run(command, check=True)
    (made,) = folder.glob("kvtier-*.whl")
    return made


def test_wheel_holds_the_package_and_no_benchmark(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "kvtier/cli/main.py" in names
    assert "kvtier/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "kvtier",
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }


def test_wheel_in_an_empty_environment_shows_help_or_names_the_missing_extra(
    wheel: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "-q", wheel], check=True)
    for command in ([], *([name] for name in COMMANDS)):
        shown = subprocess.run(
            [programs / "kvtier", *command, "--help"],
            check=False,
            capture_output=True,
            text=True,
            env={},
            cwd=tmp_path,
        )
        extra = EXTRAS.get(*command) if command else None
        if extra is None:
            assert (shown.returncode, shown.stderr) == (0, ""), command
            assert shown.stdout.startswith("Usage: kvtier"), command
        else:
            assert shown.returncode == 2
            assert f"pip install 'kvtier[{extra}]'" in shown.stderr
            assert shown.stderr.count("\n") == 1
