"""The requests of the HTTP benchmark, and the exact bytes of their answers.

The stub replica makes its answers with this module, and the load generator checks them with it. An
answer contains the mark of its request, so that an answer sent to the wrong client is detected.
"""

import json
from typing import Final

MODEL: Final = "m"
CHUNKS: Final = 64
FIRST_S: Final = 0.005
"""Time from a request to the first chunk of its stream."""
BETWEEN_S: Final = 0.002
"""Time between two chunks."""

_PROMPT_BYTES: Final = 2048
_SHARED_BYTES: Final = 1024
"""The length of the prefix that all prompts of a group share."""
_GROUPS: Final = 16
_MARK_DIGITS: Final = 12
_MARKED: Final = b'"user":"'
_TEXT: Final = "The replica that has the prefix serves it. " * 20


def make_mark(number: int) -> bytes:
    """Return the mark of a request; all marks have the same length."""
    return b"%0*d" % (_MARK_DIGITS, number)


def make_request(number: int, *, stream: str = "") -> bytes:
    """Return a complete HTTP request.

    `stream` is empty for one answer, `chunks` for a stream, and `idle` for a stream that sends one
    chunk and then nothing.
    """
    group = f"[{number % _GROUPS:04d}] You answer for a company, and you are brief. " * 40
    rest = f"{make_mark(number).decode()} What is it that this one asks about? " * 40
    prompt = group[:_SHARED_BYTES] + rest[: _PROMPT_BYTES - _SHARED_BYTES]
    # The mark comes first, so that a replica finds it without searching the whole body.
    asked: dict[str, object] = {
        "user": make_mark(number).decode(),
        "model": MODEL,
        "prompt": prompt,
    }
    asked["max_tokens"] = CHUNKS
    if stream:
        asked["stream"] = True
        asked["metadata"] = stream
    body = json.dumps(asked, separators=(",", ":")).encode()
    return (
        b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )


def find_mark(body: bytes) -> bytes:
    """Return the mark in the body of a request."""
    start = body.find(_MARKED) + len(_MARKED)
    return body[start : start + _MARK_DIGITS]


def whole_answer(mark: bytes) -> bytes:
    """Return the body of an answer that is not streamed; `mark` is the request's mark."""
    return (
        b'{"id":"cmpl-%s","object":"text_completion","model":"m","choices":[{"index":0,'
        b'"text":"%s","finish_reason":"stop"}],"usage":{"prompt_tokens":500,'
        b'"completion_tokens":64,"total_tokens":564}}' % (mark, _TEXT.encode())
    )


def stream_event(mark: bytes, number: int) -> bytes:
    """Return event `number` of a stream; the last one is `[DONE]`."""
    if number == CHUNKS:
        return b"data: [DONE]\n\n"
    return (
        b'data: {"id":"cmpl-%s","object":"text_completion","model":"m","choices":[{"index":0,'
        b'"text":" token %02d","logprobs":null,"finish_reason":null}]}\n\n' % (mark, number)
    )


def stream_body(mark: bytes) -> bytes:
    """Return the body of a whole stream, with all its chunks and the end."""
    return b"".join(stream_event(mark, number) for number in range(CHUNKS + 1))
