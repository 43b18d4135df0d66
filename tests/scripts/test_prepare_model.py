import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts import prepare_model


def fill(folder: Path, *, short: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, least in prepare_model.NEEDED_BYTES.items():
        with (folder / name).open("wb") as file:
            file.truncate(least - (name == short))  # sparse: no bytes are written


@pytest.fixture
def conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The patch that replaces `convert`; every digest is accepted."""
    monkeypatch.setattr(prepare_model, "weights_file", lambda: tmp_path / "tiny.gguf")
    monkeypatch.setattr(prepare_model, "DIGESTS", {})
    return monkeypatch


def test_prepare_leaves_complete_folder_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "model")
    monkeypatch.setattr(prepare_model, "convert", None)  # would raise if it were called
    prepare_model.prepare(tmp_path / "model")
    assert "is ready" in capsys.readouterr().out


@pytest.mark.parametrize("short", prepare_model.NEEDED_BYTES)
def test_prepare_refuses_folder_with_short_file(tmp_path: Path, short: str) -> None:
    fill(tmp_path / "model", short=short)
    with pytest.raises(SystemExit, match=f"lacks {short}: remove it"):
        prepare_model.prepare(tmp_path / "model")


def test_interrupted_conversion_leaves_no_files(
    tmp_path: Path, conversion: pytest.MonkeyPatch
) -> None:
    def interrupted(source: Path, target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    conversion.setattr(prepare_model, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_model.prepare(tmp_path / "models" / "small")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("written", [b"other bytes", None])
def test_conversion_with_unexpected_bytes_is_discarded(
    tmp_path: Path, conversion: pytest.MonkeyPatch, written: bytes | None
) -> None:
    def convert(source: Path, target: Path) -> None:
        if written is not None:
            (target / "model.safetensors").write_bytes(written)

    conversion.setattr(prepare_model, "DIGESTS", {"model.safetensors": "0" * 64})
    conversion.setattr(prepare_model, "convert", convert)
    with pytest.raises(SystemExit, match=r"unexpected bytes to model\.safetensors"):
        prepare_model.prepare(tmp_path / "models" / "small")
    assert list((tmp_path / "models").iterdir()) == []


def test_finished_conversion_is_renamed_into_place(
    tmp_path: Path, conversion: pytest.MonkeyPatch
) -> None:
    conversion.setattr(prepare_model, "convert", lambda source, target: fill(target))
    prepare_model.prepare(tmp_path / "models" / "small")
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["small"]
    assert prepare_model.missing_files(tmp_path / "models" / "small") == []


def test_every_file_that_a_loader_needs_has_a_digest() -> None:
    assert prepare_model.NEEDED_BYTES.keys() <= prepare_model.DIGESTS.keys()


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.5, 0xC020),
        (1.00390625, 0x3F80),  # halfway between 0x3F80 and 0x3F81: to the even one
        (1.01171875, 0x3F82),  # halfway between 0x3F81 and 0x3F82: to the even one
        (1.0039064, 0x3F81),
        (0.0, 0),
    ],
)
def test_bfloat16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert prepare_model.bfloat16(np.array([value], np.float32)).tolist() == [bits]


def test_rotary_pairs_are_split_within_each_head() -> None:
    rows = np.arange(8, dtype=np.uint16).reshape(8, 1)
    assert prepare_model.split_rotary_pairs(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"GGML" + bytes(64))
    with pytest.raises(SystemExit, match="not a GGUF file"):
        prepare_model.GgufReader(path)


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A llama of two layers with the tensor kinds and the metadata of the shipped file."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "gguf" / "tiny.gguf"
    path.parent.mkdir()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(40)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(97, 123))]
    tokens += ["ab", "abc", "Ġ", "Ġa", *map(chr, range(48, 55))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * 37])
    writer.add_token_merges(["a b", "ab c", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template("{{ messages }}")
    _add_tensors(writer, gguf)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tensors(writer: Any, gguf: Any) -> None:
    values = np.random.default_rng(1)

    def add(name: str, kind: Any, *shape: int) -> None:
        tensor = values.normal(size=shape).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)

    kinds = gguf.GGMLQuantizationType
    add("token_embd.weight", kinds.Q8_0, 40, 64)
    add("output_norm.weight", kinds.F32, 64)
    for layer in range(2):
        for name, rows, columns in [
            ("attn_q", 64, 64),
            ("attn_k", 32, 64),
            ("attn_v", 32, 64),
            ("attn_output", 64, 64),
            ("ffn_gate", 96, 64),
            ("ffn_up", 96, 64),
            ("ffn_down", 64, 96),
        ]:
            add(f"blk.{layer}.{name}.weight", kinds.Q4_1, rows, columns)
        add(f"blk.{layer}.attn_norm.weight", kinds.F32, 64)
        add(f"blk.{layer}.ffn_norm.weight", kinds.F32, 64)


CONVERT_WITH_TRANSFORMERS = """
import sys, torch, transformers
folder, name, target = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(
    folder,
    gguf_file=name,
    dtype=torch.bfloat16,
    quantization_config=transformers.GgufConfig(dequantize=True),
)
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.hf_quantizer = None
model.save_pretrained(target)
transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
"""


@pytest.mark.slow
def test_conversion_equals_that_of_transformers(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torch", "accelerate", "tokenizers", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, which comes with the engine")
    monkeypatch.setattr(prepare_model, "TRANSFORMERS", importlib.metadata.version("transformers"))
    monkeypatch.setattr(prepare_model, "CHUNK_ELEMENTS", 1000)  # several chunks a tensor
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    prepare_model.convert(tiny_gguf, ours)
    command = [sys.executable, "-c", CONVERT_WITH_TRANSFORMERS, str(tiny_gguf.parent)]
    subprocess.run(
        [*command, tiny_gguf.name, str(theirs)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
        timeout=110,
    )
    assert {each.name for each in ours.iterdir()} == {each.name for each in theirs.iterdir()}
    for path in theirs.iterdir():
        if path.suffix == ".json":
            assert json.loads((ours / path.name).read_text()) == json.loads(path.read_text())
        assert (ours / path.name).read_bytes() == path.read_bytes(), path.name
