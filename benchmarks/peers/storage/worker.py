"""What every driver shares: the blocks, and a loop that does what standard input says.

Why a process each: the peers need packages that exclude each other, and rounds must interleave
all the same. A driver times its own calls, so the pipe costs nobody anything, and answers with a
digest of the bytes it read, which `run.py` compares with the bytes it expects.

Imports only the standard library and numpy, which every environment has. One JSON object a line:
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
"""Batches whose bytes all differ."""
_SEED = 20
_ALIGNMENT = 2 << 20


class Options(NamedTuple):
    """What a driver is started with."""

    folder: Path
    block_bytes: int
    count: int
    threads: int
    """Threads that read and write; 0: as many as the system takes by default."""
    direct: bool
    """O_DIRECT; without it through the page cache."""
    engine: str
    """Which of a system's adapters, where it has several."""


class Storage(ABC):
    """One system, over `source` (what is written) and `target` (where it is read to)."""

    @abstractmethod
    def write(self, batch: int) -> None:
        """Store every block of `source` under keys of this batch; raises if one is not stored."""

    def settle(self, batch: int) -> None:  # noqa: B027  # most keep no blocks in their memory
        """Give what was written to the file system; nobody is timed here."""

    @abstractmethod
    def read(self, batch: int) -> None:
        """Fill `target` with the batch; raises if a block is missing."""

    @abstractmethod
    def clean(self, batch: int) -> None:
        """Remove the batch."""

    @abstractmethod
    def close(self) -> None:
        """End what was started."""


class Batch:
    """The blocks of one batch: [count, block_bytes] of bytes that do not compress, page-aligned.

    Batch n is batch 0 with n exclusive-or'ed to every byte, so what an earlier round left behind
    cannot pass for this round's bytes.
    """

    def __init__(self, count: int, block_bytes: int) -> None:
        self.blocks = allocate(count, block_bytes)
        self._number = 0
        self.blocks[:] = np.random.Generator(np.random.PCG64(_SEED)).integers(
            0, 256, (count, block_bytes), np.uint8
        )

    def become(self, number: int) -> None:
        """Turn into another batch, in place."""
        words = self.blocks.view(np.uint64)
        words ^= np.uint64((number ^ self._number) % BATCHES * 0x0101010101010101)
        self._number = number


def allocate(count: int, block_bytes: int) -> np.ndarray:
    """Zeroed private memory, in huge pages where numpy gets them; blocks start on a page."""
    size = count * block_bytes
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    blocks = room[start : start + size].reshape(count, block_bytes)
    blocks[:] = 0
    return blocks


def digest(blocks: np.ndarray) -> str:
    return hashlib.sha256(blocks).hexdigest()


def serve(make: Callable[[Options, np.ndarray, np.ndarray], Storage]) -> None:
    """Build the storage that the command line describes and obey until standard input ends."""
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
    """Keep standard output for answers; what a system prints goes to standard error."""
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
