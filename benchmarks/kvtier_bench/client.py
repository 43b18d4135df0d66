"""A streaming client of the OpenAI completions endpoint that times what a user feels.

Why its own: time to first token is taken when the first token's bytes arrive, with nothing
between the socket and the clock, and the standard library is enough for that. Requests are
greedy and of fixed length, so that two servers can be compared token for token.
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
    """The server refused or broke off a request; the message carries what it said."""


class ServerAddress(msgspec.Struct, frozen=True):
    """Where a server listens and the name it serves its model under."""

    host: str
    port: int
    model: str


class CompletionResult(msgspec.Struct, frozen=True, kw_only=True):
    """One answered request. Times are seconds from the moment it was sent."""

    text: str
    ttft_s: float
    e2e_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


def complete(
    endpoint: ServerAddress, prompt: str | Sequence[int], output_len: int, salt: str = ""
) -> CompletionResult:
    """Send one greedy request of exactly `output_len` tokens and wait for all of it.

    `prompt` is text, or token ids. `salt` keeps a run's cached blocks apart from every other run's.
    Blocks; raises RequestFailed for any status but 200 and for a stream that breaks off.
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
    """Answers in the order of `prompts`, with `concurrency` requests in flight at all times."""
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
        raise RequestFailed("the stream ended without a token and its usage")
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
