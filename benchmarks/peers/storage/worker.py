"""The common part of all drivers: the blocks, and a loop that executes commands of standard input.

Each driver is a process of its own, because the peers need conflicting packages and rounds must
nevertheless interleave. A driver times its own calls, so that the pipe does not count, and answers
with a digest of the bytes it read, which `run.py` compares with the expected bytes.

Imports only the standard library and numpy, which every environment has. Each line is a JSON
object:
    in   {"do": "write" | "settle" | "read" | "clean", "batch": n}
    out  {"ready": true}, then {"seconds": s} or, for a read, {"seconds": s, "digest": "..."}
"""

import argparse
import hashlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

BATCHES = 256
"""The number of batches with different bytes."""
_SEED = 20
_ALIGNMENT = 2 << 20


class Options(NamedTuple):
    """The command line of a driver."""

    folder: Path
    block_bytes: int
    count: int
    threads: int
    """Threads that read and write; 0 for the system's default."""
    direct: bool
    """Whether to use O_DIRECT instead of the page cache."""
    engine: str
    """The adapter to use, if the system has several."""


class Storage(ABC):
    """A storage system under test, which writes blocks of `source` and reads into `target`."""

    @abstractmethod
    def write(self, batch: int) -> None:
        """Store every block of `source` under keys of the batch; raise if one is not stored."""

    def settle(self, batch: int) -> None:  # noqa: B027  # most systems buffer no blocks
        """Flush written blocks to the file system; this is not timed."""

    @abstractmethod
    def read(self, batch: int) -> None:
        """Fill `target` with the batch; raise if a block is missing."""

    @abstractmethod
    def clean(self, batch: int) -> None:
        """Remove the batch."""

    @abstractmethod
    def close(self) -> None:
        """Close the system."""


class Batch:
    """The page-aligned blocks of a batch, [count, block_bytes] of incompressible bytes.

    Batch n is batch 0 with every byte XORed with n, so that leftovers of an earlier round cannot be
    mistaken for the current bytes.
    """

    def __init__(self, count: int, block_bytes: int) -> None:
        self.blocks = allocate(count, block_bytes)
        self._number = 0
        self.blocks[:] = np.random.Generator(np.random.PCG64(_SEED)).integers(
            0, 256, (count, block_bytes), np.uint8
        )

    def become(self, number: int) -> None:
        """Change the blocks to those of batch `number`, in place."""
        words = self.blocks.view(np.uint64)
        words ^= np.uint64((number ^ self._number) % BATCHES * 0x0101010101010101)
        self._number = number


def allocate(count: int, block_bytes: int) -> np.ndarray:
    """Return zeroed, page-aligned blocks, in huge pages if numpy can get them."""
    size = count * block_bytes
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    blocks = room[start : start + size].reshape(count, block_bytes)
    blocks[:] = 0
    return blocks


def digest(blocks: np.ndarray) -> str:
    return hashlib.sha256(blocks).hexdigest()


def serve(make: Callable[[Options, np.ndarray, np.ndarray], Storage]) -> None:
    """Create the storage that the command line describes, and execute commands until EOF."""
    answers = _own_stdout()
    options = _parse()
    batch = Batch(options.count, options.block_bytes)
    target = allocate(options.count, options.block_bytes)
    storage = make(options, batch.blocks, target)
    try:
        _answer(answers, {"ready": True})
        for line in sys.stdin:
            request = json.loads(line)
            _answer(answers, _obey(storage, batch, target, request["do"], request["batch"]))
    finally:
        storage.close()


def _obey(
    storage: Storage, batch: Batch, target: np.ndarray, verb: str, number: int
) -> dict[str, object]:
    if verb == "write":
        batch.become(number)
    elif verb == "read":
        target[:] = 0
    call = {
        "write": storage.write,
        "settle": storage.settle,
        "read": storage.read,
        "clean": storage.clean,
    }[verb]
    began_s = time.perf_counter()
    call(number)
    answer: dict[str, object] = {"seconds": time.perf_counter() - began_s}
    if verb == "read":
        answer["digest"] = digest(target)
    return answer


def _own_stdout() -> int:
    """Redirect the system's output to standard error, and return a descriptor for answers."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def _answer(answers: int, content: dict[str, object]) -> None:
    os.write(answers, json.dumps(content).encode() + b"\n")


def _parse() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--block-bytes", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--engine", default="")
    return Options(**vars(parser.parse_args()))
