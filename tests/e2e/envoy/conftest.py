from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.envoy.servers import Stage, envoy_program, stage


@pytest.fixture(scope="session")
def envoy() -> str:
    found = envoy_program()
    if found is None:
        pytest.skip(
            "Envoy is not installed: `make build/envoy/bin/envoy` does it, or set KVTIER_ENVOY"
        )
    return found


@pytest.fixture
def scene(tmp_path: Path, envoy: str) -> Iterator[Stage]:
    with stage(tmp_path, envoy) as opened:
        yield opened
