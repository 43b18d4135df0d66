"""The folder of a small model: a byte-level tokenizer trained here, and a chat template."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = [
    "The quick brown fox jumps over the lazy dog, and then again.",
    "Ein Satz mit Umlauten: äöüß, und mit Zahlen 12345.",
    "def f(x):\n    return x + 1\n\n\nprint(f(3))\n",
    "user assistant system tool what is the weather in Paris and in Berlin?",
]
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_folder(path: Path, template: str | None = TEMPLATE) -> Path:
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>", AddedToken("<strip>", special=True, lstrip=True)]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<bos>", *specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXT * 4, trainer)
    library.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", library.token_to_id("<bos>"))]
    )
    library.save(str(path / "tokenizer.json"))
    config = {"bos_token": {"content": "<bos>"}, "eos_token": "<|im_end|>", "model_max_length": 8}
    if template is not None:
        config["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path
