"""What the benchmark asks, and what every answer must be, byte for byte.

The replica makes answers and the load generator checks them; both take them from here. An answer
carries the mark of its request, so that answers given to the wrong client show.
"""

import json
from typing import Final

MODEL: Final = "m"
CHUNKS: Final = 64
FIRST_S: Final = 0.005
"""Of a stream, to its first chunk."""
BETWEEN_S: Final = 0.002
"""From chunk to chunk."""

_PROMPT_BYTES: Final = 2048
_SHARED_BYTES: Final = 1024
"""Of a prompt, that the prompts of its group have in common."""
_GROUPS: Final = 16
_MARK_DIGITS: Final = 12
_MARKED: Final = b'"user":"'
_TEXT: Final = "The replica that has the prefix serves it. " * 20


def mark(number: int) -> bytes:
    """Of a request; always as long."""
    return b"%0*d" % (_MARK_DIGITS, number)


def question(number: int, *, stream: str = "") -> bytes:
    """A complete HTTP request. `stream`: empty, `chunks`, or `idle` for one that says little."""
    group = f"[{number % _GROUPS:04d}] You answer for a company, and you are brief. " * 40
    rest = f"{mark(number).decode()} What is it that this one asks about? " * 40
    prompt = group[:_SHARED_BYTES] + rest[: _PROMPT_BYTES - _SHARED_BYTES]
    # The mark comes first, so that a replica finds it without reading everything.
    asked: dict[str, object] = {"user": mark(number).decode(), "model": MODEL, "prompt": prompt}
    asked["max_tokens"] = CHUNKS
    if stream:
        asked["stream"] = True
        asked["metadata"] = stream
    body = json.dumps(asked, separators=(",", ":")).encode()
    return (
        b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )


def marked(body: bytes) -> bytes:
    """The mark in a question's body."""
    start = body.find(_MARKED) + len(_MARKED)
    return body[start : start + _MARK_DIGITS]


def whole(found: bytes) -> bytes:
    """The body of an answer that is no stream."""
    return (
        b'{"id":"cmpl-%s","object":"text_completion","model":"m","choices":[{"index":0,'
        b'"text":"%s","finish_reason":"stop"}],"usage":{"prompt_tokens":500,'
        b'"completion_tokens":64,"total_tokens":564}}' % (found, _TEXT.encode())
    )


def chunk(found: bytes, number: int) -> bytes:
    """One event of a stream; the last says that it is the last."""
    if number == CHUNKS:
        return b"data: [DONE]\n\n"
    return (
        b'data: {"id":"cmpl-%s","object":"text_completion","model":"m","choices":[{"index":0,'
        b'"text":" token %02d","logprobs":null,"finish_reason":null}]}\n\n' % (found, number)
    )


def streamed(found: bytes) -> bytes:
    """The body of a whole stream: its chunks, and the end."""
    return b"".join(chunk(found, number) for number in range(CHUNKS + 1))
