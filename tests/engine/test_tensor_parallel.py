"""An engine with one worker and one with two share a folder: each loads the other's blocks.

The tests draw the weights and write them to a file, because random weights that an engine makes
depend on its number of workers. In float32 both compute the same tokens.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.conftest import Start
from tests.engine.engine import Answer, Engine

BLOCK = 128
SIZE = 900
WHOLE = (SIZE - 1) // BLOCK * BLOCK
TAIL = SIZE - WHOLE
SCALE = 0.2
TWO_WORKERS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


def draw_weights(folder: Path, **changes: Any) -> Path:
    """Change the configuration in `folder` and add weights that fit it."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_key_value_heads"] * config["head_dim"]
    drawn = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return drawn.uniform(-SCALE, SCALE, shape).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": weight(config["vocab_size"], hidden),
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.self_attn.q_proj.weight": weight(hidden, hidden),
            f"{at}.self_attn.k_proj.weight": weight(heads, hidden),
            f"{at}.self_attn.v_proj.weight": weight(heads, hidden),
            f"{at}.self_attn.o_proj.weight": weight(hidden, hidden),
            f"{at}.mlp.gate_proj.weight": weight(inner, hidden),
            f"{at}.mlp.up_proj.weight": weight(inner, hidden),
            f"{at}.mlp.down_proj.weight": weight(hidden, inner),
            f"{at}.input_layernorm.weight": np.ones(hidden, np.float32),
            f"{at}.post_attention_layernorm.weight": np.ones(hidden, np.float32),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def model(made_up: Callable[[str], Path]) -> Path:
    """A small llama with four KV heads."""
    return draw_weights(made_up("wide_llama"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mount") / "kv"


@pytest.fixture(scope="module")
def begin(start: Start, model: Path, folder: Path) -> Callable[..., Engine]:
    settings = {"ram": "256MiB", "shared": {"path": str(folder), "recheck": "50ms"}}

    def begin_engine(more: dict[str, Any], **extra: Any) -> Engine:
        return start(model, {**settings, **extra}, skip_tokenizer_init=True, **more)

    return begin_engine


@pytest.fixture(scope="module")
def one(begin: Callable[..., Engine]) -> Iterator[Engine]:
    with begin({}) as engine:
        yield engine


@pytest.fixture(scope="module")
def two(begin: Callable[..., Engine]) -> Iterator[Engine]:
    with begin(TWO_WORKERS) as engine:
        yield engine


@pytest.fixture(scope="module")
def prompts(noise: list[int]) -> list[list[int]]:
    return [noise[place : place + SIZE] for place in (0, 2_000, 4_000)]


@pytest.fixture(scope="module")
def computed(one: Engine, prompts: list[list[int]]) -> Answer:
    """The one-worker engine's answer to the first prompt, whose blocks are in the folder."""
    answer = one.ask(prompts[0])
    one.call("settle")
    assert answer.cached == 0
    return answer


def test_two_workers_load_blocks_of_one_worker(
    computed: Answer, two: Engine, prompts: list[list[int]], folder: Path
) -> None:
    answer = two.ask(prompts[0])
    assert (answer.tokens, answer.cached) == (computed.tokens, WHOLE)
    assert two.counters()["shared"]["corrupt_blocks"] == 0
    # What is loaded decides the answer: after another prefix the same ending continues differently.
    other = two.ask([*prompts[1][:WHOLE], *prompts[0][-TAIL:]])
    assert other.cached == 0
    assert other.tokens != answer.tokens
    two.call("settle")
    two.call("check")
    assert len(list(folder.glob("*/manifest.json"))) == 1


def test_one_worker_loads_blocks_of_two_workers(
    computed: Answer, one: Engine, two: Engine, prompts: list[list[int]]
) -> None:
    written = two.ask(prompts[2])
    two.call("settle")
    answer = one.ask(prompts[2])
    assert (written.cached, answer.cached) == (0, WHOLE)
    assert answer.tokens == written.tokens == one.ask(prompts[2], salt="reference").tokens


def test_two_workers_reload_blocks_from_ram_after_device_reset(
    computed: Answer, two: Engine, prompts: list[list[int]]
) -> None:
    """The round trip goes through RAM that both workers map."""
    first = two.ask(prompts[1])
    two.call("settle")
    assert two.call("reset")
    again = two.ask(prompts[1])
    assert (again.tokens, again.cached) == (first.tokens, WHOLE)


@pytest.mark.slow
def test_workers_without_canonical_layout_share_nothing(
    computed: Answer,
    two: Engine,
    begin: Callable[..., Engine],
    prompts: list[list[int]],
    folder: Path,
) -> None:
    two.close()
    with begin(TWO_WORKERS, canonical_layout=False) as apart:
        answer = apart.ask(prompts[0])
        assert (answer.tokens, answer.cached) == (computed.tokens, 0)
        apart.call("settle")
        assert apart.call("reset")
        again = apart.ask(prompts[0])
        assert (again.tokens, again.cached) == (computed.tokens, WHOLE)
    assert len(list(folder.glob("*/manifest.json"))) == 2


@pytest.mark.slow
def test_workers_with_the_same_kv_head_keep_one_copy(
    start: Start, made_up: Callable[[str], Path], prompts: list[list[int]], folder: Path
) -> None:
    """One KV head on two workers: each stores every other block for both."""
    model = draw_weights(made_up("wide_llama"), num_key_value_heads=1)
    shared = {"path": str(folder), "recheck": "50ms"}
    settings = {"ram": "256MiB", "shared": shared, "canonical_layout": True}
    with start(model, settings, skip_tokenizer_init=True) as one:
        computed = one.ask(prompts[0])
        one.call("settle")
    with start(model, settings, skip_tokenizer_init=True, **TWO_WORKERS) as two:
        answer = two.ask(prompts[0])
        assert (answer.tokens, answer.cached) == (computed.tokens, WHOLE)
        written = two.ask(prompts[2])
        two.call("settle")
        assert two.call("reset")
        again = two.ask(prompts[2])
        assert (written.cached, again.cached) == (0, WHOLE)
        assert again.tokens == written.tokens
