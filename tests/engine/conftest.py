"""What the engine tests share: the model, prompts of real text, and the marker.

Nothing here imports vLLM: engines run in processes of their own (`engine.py`).
"""

import importlib.util
import os
import pydoc_data.topics
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.engine import REPOSITORY, Engine

Start = Callable[..., Engine]
MADE_UP: dict[str, Any] = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "enable_prefix_caching": True,
}
"""What `LLM()` needs for a model without weights."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder starts an engine; an engine may take minutes to start."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(600))


def do_without(request: pytest.FixtureRequest, reason: str) -> None:
    """Skip, or fail where the engine is required."""
    if request.config.getoption("--require-engine"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def engine_installed(request: pytest.FixtureRequest) -> None:
    """Skip where there is no vLLM."""
    if importlib.util.find_spec("vllm") is None:
        do_without(request, "vllm is not installed: run scripts/install_engine.py")


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The folder of SmolLM2-135M with its real weights."""
    model = Path(os.environ.get("KVTIER_MODEL") or REPOSITORY / ".models" / "smollm2-135m")
    if not (model / "config.json").is_file():
        hint = "run scripts/prepare_model.py, or set KVTIER_MODEL"
        do_without(request, f"no model in {model}: {hint}")
    return model


@pytest.fixture(scope="session")
def corpus(smollm2: Path) -> list[int]:
    """Token ids of real English text, some 40,000 of them."""
    from tokenizers import Tokenizer

    text = " ".join(pydoc_data.topics.topics.values())[:160_000]
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small model that has a configuration and no weights."""

    def folder(name: str) -> Path:
        path = tmp_path_factory.mktemp(name)
        shutil.copy(Path(__file__).parent / "models" / f"{name}.json", path / "config.json")
        return path

    return folder


@pytest.fixture(scope="session")
def noise() -> list[int]:
    """Token ids for models without weights, to whom all text is alike."""
    drawn = random.Random(0)
    return [drawn.randrange(3, 1_000) for _ in range(8_000)]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """A function that makes an engine whose log lies in a folder of its own."""

    def make(model: Path, kvtier: dict[str, Any] | None, **more: Any) -> Engine:
        return Engine(tmp_path_factory.mktemp("engine") / "log", model, kvtier, **more)

    return make
