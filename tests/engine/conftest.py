"""Fixtures of the engine tests: models, prompts of real text, and a way to start engines.

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
"""Arguments of `LLM()` for a model without weights."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test below this folder: it starts an engine, which may take minutes."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(600))


def skip_without_engine(request: pytest.FixtureRequest, reason: str) -> None:
    """Skip the test, or fail it where `--require-engine` is given."""
    if request.config.getoption("--require-engine"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def engine_installed(request: pytest.FixtureRequest) -> None:
    """Skip the tests where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        skip_without_engine(request, "vllm is not installed: run scripts/install_engine.py")


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The folder of SmolLM2-135M with its real weights."""
    model = Path(os.environ.get("KVTIER_MODEL") or REPOSITORY / ".models" / "smollm2-135m")
    if not (model / "config.json").is_file():
        hint = "run scripts/prepare_model.py, or set KVTIER_MODEL"
        skip_without_engine(request, f"no model in {model}: {hint}")
    return model


@pytest.fixture(scope="session")
def corpus(smollm2: Path) -> list[int]:
    """About 40,000 token ids of real English text."""
    from tokenizers import Tokenizer

    text = " ".join(pydoc_data.topics.topics.values())[:160_000]
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that makes the folder of a small model with a configuration and no weights."""

    def folder(name: str) -> Path:
        path = tmp_path_factory.mktemp(name)
        shutil.copy(Path(__file__).parent / "models" / f"{name}.json", path / "config.json")
        return path

    return folder


@pytest.fixture(scope="session")
def noise() -> list[int]:
    """Random token ids, for models without weights."""
    drawn = random.Random(0)
    return [drawn.randrange(3, 1_000) for _ in range(8_000)]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """A function that makes an engine whose log lies in a folder of its own."""

    def make(model: Path, kvtier: dict[str, Any] | None, **more: Any) -> Engine:
        return Engine(tmp_path_factory.mktemp("engine") / "log", model, kvtier, **more)

    return make
