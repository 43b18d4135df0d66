"""A streaming client of the OpenAI completions API that measures latencies as a user sees them.

It uses only the standard library, so that nothing lies between the socket and the clock when the
first token's bytes arrive. Requests are greedy and of fixed length, so that the answers of two
servers can be compared token by token.
"""

import http.client
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from kvtier.clock import perf_s
from kvtier.errors import KVTierError

REQUEST_TIMEOUT_S = 600.0


class RequestFailed(KVTierError):
    """A request that the server refused or broke off; the message contains its answer."""


class ServerAddress(msgspec.Struct, frozen=True):
    """The address of a server, and the name under which it serves its model."""

    host: str
    port: int
    model: str


class CompletionResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one request, with latencies in seconds since the request was sent."""

    text: str
    ttft_s: float
    e2e_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


def complete(
    endpoint: ServerAddress, prompt: str | Sequence[int], output_len: int, salt: str = ""
) -> CompletionResult:
    """Request exactly `output_len` tokens with greedy sampling, and wait for the whole answer.

    `prompt` is text or token ids. Requests of different `salt` share no cached blocks. Raises
    RequestFailed for any status but 200 and for a stream that breaks off.
    """
    body: dict[str, Any] = {
        "model": endpoint.model,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": output_len,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if salt:
        body["cache_salt"] = salt
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=REQUEST_TIMEOUT_S)
    try:
        started_s = perf_s()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != http.client.OK:
            said = response.read(2000).decode(errors="replace")
            raise RequestFailed(f"the server answered {response.status}: {said}")
        return _read_stream(response, started_s)
    except (OSError, http.client.HTTPException) as error:
        raise RequestFailed(f"the connection to the server broke: {error!r}") from error
    finally:
        connection.close()


def complete_all(
    endpoint: ServerAddress,
    prompts: Sequence[str | Sequence[int]],
    output_len: int,
    concurrency: int,
    salt: str = "",
) -> list[CompletionResult]:
    """Complete all prompts, `concurrency` at a time; return the answers in the prompts' order."""
    with ThreadPoolExecutor(concurrency, thread_name_prefix="bench-client") as pool:
        pending = [pool.submit(complete, endpoint, each, output_len, salt) for each in prompts]
        try:
            return [future.result() for future in pending]
        except BaseException:
            for future in pending:
                future.cancel()
            raise


def _read_stream(response: http.client.HTTPResponse, started_s: float) -> CompletionResult:
    pieces: list[str] = []
    usage: dict[str, Any] | None = None
    ttft_s: float | None = None
    for event in _events(response):
        if "error" in event:
            raise RequestFailed(f"the server broke off: {event['error']}")
        if event.get("choices"):
            if ttft_s is None:
                ttft_s = perf_s() - started_s
            pieces.append(event["choices"][0]["text"])
        usage = event.get("usage") or usage
    e2e_s = perf_s() - started_s
    if ttft_s is None or usage is None:
        raise RequestFailed("the stream ended without any token or without its usage")
    details = usage.get("prompt_tokens_details") or {}
    return CompletionResult(
        text="".join(pieces),
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=details.get("cached_tokens") or 0,
        output_tokens=usage["completion_tokens"],
    )


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if not line.startswith(b"data:"):
            continue
        payload = line[len(b"data:") :].strip()
        if payload == b"[DONE]":
            return
        yield json.loads(payload)
