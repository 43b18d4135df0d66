"""Workloads: groups of requests that share a long prefix, from real English text.

A workload has the shape of the shared-prefix benchmarks that offloading is commonly measured
with: several groups, each with its own system prompt, several questions per group, all shuffled.
The text is the language reference that ships with CPython, so it is the same on every machine and
needs no download. Token lengths are exact because prompts are cut after tokenizing.

Invariants: the same workload, tokenizer and seed give the same prompts in the same order; no two
groups share a first block; no two requests share a question.
"""

import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from kvtier.clock import seeded
from kvtier.errors import InvalidSettings

Encode = Callable[[str], list[int]]
"""Turns text into token ids, without special tokens."""
Decode = Callable[[list[int]], str]
"""Turns token ids into the text they stand for."""

_QUESTION = "\n\nQuestion: What does the documentation say about this passage: "
_ANSWER = "\nAnswer:"


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a load: lengths in tokens, and the device cache that it is sized against."""

    name: str
    title: str
    groups: int
    system_prompt_len: int
    question_len: int
    prompts_per_group: int
    output_len: int
    concurrency: int
    block_tokens: int
    device_blocks: int
    runs_per_round: int = 1
    """Runs in each round; more than one if single runs scatter more than the measured effect."""

    def __post_init__(self) -> None:
        smallest = min(getattr(self, name) for name in self.__struct_fields__[2:])
        if smallest < 1:
            raise ValueError(f"{self.name}: every length and count must be at least 1")

    @property
    def requests(self) -> int:
        """The number of requests in one run."""
        return self.groups * self.prompts_per_group

    @property
    def working_set_blocks(self) -> int:
        """The number of blocks that a cache must hold so that no prefix is computed twice.

        These are the whole blocks of every prefix, and what the requests in flight need beside
        them.
        """
        prefix = self.system_prompt_len // self.block_tokens
        whole = self.system_prompt_len + self.question_len + self.output_len
        beside = -(-whole // self.block_tokens) - prefix
        return self.groups * prefix + self.concurrency * beside

    @property
    def working_set_ratio(self) -> float:
        """The working set as a multiple of the device cache."""
        return self.working_set_blocks / self.device_blocks


W = TypeVar("W", bound=Workload)


class WorkloadPrompt(NamedTuple):
    """The token ids of one request, and the prefix and question that they consist of."""

    group: int
    question: int
    tokens: list[int]

    @property
    def label(self) -> str:
        """The name of the request, the same in every run."""
        return f"{self.group}/{self.question}"


def read_workload(path: Path) -> Workload:
    """Parse a workload file. Raises InvalidSettings, which names the file and the fault."""
    return read_as(Workload, path)


def read_as(kind: type[W], path: Path) -> W:
    """Parse a workload file of a subclass of Workload; raises as `read_workload` does."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise InvalidSettings(
            f"no workload at {path}: run from the repository's root, or name the folder "
            "with --workloads"
        ) from error
    except msgspec.MsgspecError as error:
        raise InvalidSettings(f"{path}: {error}") from error


def model_encoder(model: Path) -> Encode:
    """Return the model's own encoder. Raises InvalidSettings if it or its package is missing."""
    tokenizer = _tokenizer(model)

    def encode(text: str) -> list[int]:
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    return encode


def model_decoder(model: Path) -> Decode:
    """Return the model's own decoder; raises as `model_encoder` does."""
    decode: Decode = _tokenizer(model).decode
    return decode


def _tokenizer(model: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InvalidSettings(
            "cutting prompts to length needs `tokenizers`, which comes with the engine: "
            "install vLLM into this environment"
        ) from error
    path = model / "tokenizer.json"
    if not path.is_file():
        raise InvalidSettings(f"no tokenizer.json in {model}: `--model` takes a model folder")
    return Tokenizer.from_file(str(path))


def read_corpus() -> str:
    """Return about 465,000 characters of English prose and examples, in a fixed order."""
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def build_prompts(workload: Workload, encode: Encode, seed: int) -> list[WorkloadPrompt]:
    """Return every request of a run in its shuffled order. Encodes the whole corpus once.

    Raises InvalidSettings if the corpus is too short for the workload, or `question_len` too
    short for the words around a question.
    """
    corpus = encode(read_corpus())
    opening, closing = encode(_QUESTION), encode(_ANSWER)
    passage_len = workload.question_len - len(opening) - len(closing)
    questions_at = workload.groups * workload.system_prompt_len
    if passage_len < 1:
        raise InvalidSettings(f"{workload.name}: question_len is too short to ask anything")
    if questions_at + workload.requests * passage_len > len(corpus):
        raise InvalidSettings(f"{workload.name}: needs more text than the corpus has")
    prompts: list[WorkloadPrompt] = []
    for group in range(workload.groups):
        prefix_at = group * workload.system_prompt_len
        prefix = corpus[prefix_at : prefix_at + workload.system_prompt_len]
        for question in range(workload.prompts_per_group):
            index = group * workload.prompts_per_group + question
            passage_at = questions_at + index * passage_len
            passage = corpus[passage_at : passage_at + passage_len]
            tokens = [*prefix, *opening, *passage, *closing]
            prompts.append(WorkloadPrompt(group, question, tokens))
    seeded(seed).shuffle(prompts)
    return prompts


def distinct_prompts(encode: Encode, lengths: list[int]) -> list[list[int]]:
    """Return one prompt per length, no two of which share any text, to measure single requests.

    Raises InvalidSettings if the corpus is too short for them all.
    """
    corpus = encode(read_corpus())
    if sum(lengths) > len(corpus):
        raise InvalidSettings(
            f"{len(lengths)} prompts of {sum(lengths)} tokens in all, and the corpus has "
            f"{len(corpus)}: measure fewer or shorter ones"
        )
    prompts: list[list[int]] = []
    start = 0
    for length in lengths:
        prompts.append(corpus[start : start + length])
        start += length
    return prompts
