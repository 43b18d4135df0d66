"""Sources of a prompt's tokens: a tokenizer in this process, or an engine's `/tokenize`.

Invariants: tokenizing never blocks the event loop; a source that cannot tokenize a prompt raises
Unavailable and nothing else; an engine that did not reply in time is not used for a while if
another one can be; cached responses of an engine are removed with the engine.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import numpy as np
import xxhash

from kvtier.clock import Clock, MonotonicClock
from kvtier.errors import InvalidSettings, Unavailable
from kvtier.index.fleet.prompt import Numbers
from kvtier.router.fleet.members import FleetMember
from kvtier.router.learn.prompts import ChatPrompt, TokenSource
from kvtier.router.learn.template import ChatTemplate, TemplateError
from kvtier.router.learn.tokenizer import CACHED_BYTES, TokenCache, Tokenizer

EVENTS: Final = "kv-events"
"""The label of a replica that names the endpoint of its KV events."""
ANSWER_MAX: Final = 64 << 20
TIMEOUT_S: Final = 2.0
REST_S: Final = 10.0
"""How long an engine that did not reply is not used again, so that requests do not wait for it."""


class LocalSource:
    """A TokenSource that uses a folder's tokenizer and chat template. It must be closed."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer, which takes 0.1 to 1 s.

        Without a chat template, `chat` raises Unavailable. Raises InvalidSettings if the folder
        has no tokenizer.
        """
        self._tokenizer = Tokenizer(folder)
        self._template: ChatTemplate | None = None
        try:
            self._template = ChatTemplate(folder)
        except InvalidSettings as error:
            self._reason = str(error)
        # One thread suffices: the tokenizer is not thread-safe, and it uses all cores by itself.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvtier-tokenize")

    async def completion(self, text: str, model: str, *, add_special_tokens: bool) -> Numbers:
        """Return the tokens of a plain prompt."""
        return await self._run(self._completion, text, add_special_tokens)

    async def chat(self, conversation: ChatPrompt, model: str) -> Numbers:
        """Return the tokens of a chat as the template renders it."""
        return await self._run(self._chat, conversation)

    def close(self) -> None:
        """Stop the thread. Idempotent."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _run(self, call: Any, *arguments: Any) -> Numbers:
        loop = asyncio.get_running_loop()
        try:
            found: Numbers = await loop.run_in_executor(self._thread, call, *arguments)
        except (RuntimeError, UnicodeError, TypeError, OverflowError) as error:
            raise Unavailable(f"the tokenizer failed: {error}") from error
        return found

    def _completion(self, text: str, add_special_tokens: bool) -> Numbers:  # noqa: FBT001
        return self._tokenizer.tokens(text, add_special_tokens=add_special_tokens)

    def _chat(self, conversation: ChatPrompt) -> Numbers:
        if self._template is None:
            raise Unavailable(self._reason)
        try:
            text = self._template.render(conversation)
        except TemplateError as error:
            raise Unavailable(f"the chat template failed: {error}") from error
        return self._tokenizer.tokens(text, add_special_tokens=False)


class _Answer(msgspec.Struct):
    tokens: list[int]


class EngineSource:
    """A TokenSource that uses an engine's `/tokenize` and caches its responses."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
        cached_bytes: int = CACHED_BYTES,
        clock: Clock | None = None,
    ) -> None:
        """`url` is the `http://host:port` of an engine that serves the model."""
        self._clock = MonotonicClock() if clock is None else clock
        self._rests_until_s = float("-inf")
        self._session = session
        self._url = f"{url.rstrip('/')}/tokenize"
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._cache = TokenCache(cached_bytes)

    @property
    def is_resting(self) -> bool:
        """Whether the engine recently did not reply, so that it is not used."""
        return self._clock.now_s() < self._rests_until_s

    async def completion(self, text: str, model: str, *, add_special_tokens: bool) -> Numbers:
        """Return the tokens of a plain prompt."""
        request = {"model": model, "prompt": text, "add_special_tokens": add_special_tokens}
        return await self._tokenize(request)

    async def chat(self, conversation: ChatPrompt, model: str) -> Numbers:
        """Return the tokens of a chat as the engine's template renders it."""
        request: dict[str, Any] = {
            "model": model,
            "messages": conversation.messages,
            "add_generation_prompt": conversation.add_generation_prompt,
        }
        if conversation.tools:
            request["tools"] = conversation.tools
        if conversation.kwargs:
            request["chat_template_kwargs"] = dict(conversation.kwargs)
        return await self._tokenize(request)

    async def _tokenize(self, request: dict[str, Any]) -> Numbers:
        try:
            body = msgspec.json.encode(request)
        except (TypeError, ValueError, RecursionError) as error:
            raise Unavailable(f"not representable as JSON: {error}") from error
        digest = xxhash.xxh3_128_intdigest(body)
        known = self._cache.get(digest)
        if known is not None:
            return known
        if self.is_resting:
            raise Unavailable(f"{self._url} recently did not reply")
        try:
            answer = await self._post(body)
            found = await asyncio.to_thread(_tokens, answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._rests_until_s = self._clock.now_s() + REST_S
            raise Unavailable(f"{self._url}: {error!r}") from error
        except (ValueError, OverflowError, RecursionError) as error:
            raise Unavailable(f"{self._url}: {error!r}") from error
        self._cache.put(digest, found)
        return found

    async def _post(self, body: bytes) -> bytes:
        async with self._session.post(
            self._url,
            data=body,
            headers=self._headers,
            timeout=self._timeout,
            allow_redirects=False,
        ) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            pieces = bytearray()
            async for piece in answer.content.iter_any():
                pieces += piece
                if len(pieces) > ANSWER_MAX:
                    answer.close()
                    raise ValueError("the response is too long")
            return bytes(pieces)


class EngineSources(Mapping[str, TokenSource]):
    """A mapping of model to the engine that tokenizes its prompts.

    That is the first available member that serves the model, publishes KV events, and did not
    recently fail to reply. Members without events are not used: if no engine publishes tokens,
    prompts can be compared by characters just as well, without a request to an engine.
    """

    def __init__(self, members: Callable[[], Iterable[FleetMember]]) -> None:
        self._members = members
        self._session: aiohttp.ClientSession | None = None
        self._sources: dict[str, EngineSource] = {}

    def use(self, session: aiohttp.ClientSession) -> None:
        """Send requests through `session`. Must be called before the first lookup."""
        self._session = session

    def __getitem__(self, model: str) -> TokenSource:
        first: EngineSource | None = None
        for member in self._members():
            if (
                member.is_available
                and EVENTS in member.replica.labels
                and model in member.endpoint.models
            ):
                source = self._source(member.replica.url)
                if not source.is_resting:
                    return source
                first = first or source
        if first is None:
            raise KeyError(model)
        return first

    def remove(self, url: str) -> None:
        """Remove the engine at `url` and its cached responses. Idempotent."""
        self._sources.pop(url, None)

    def __iter__(self) -> Iterator[str]:
        found = (member.endpoint.models for member in self._members() if member.is_available)
        return iter(frozenset().union(*found))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _source(self, url: str) -> EngineSource:
        assert self._session is not None
        found = self._sources.get(url)
        if found is None:
            found = self._sources[url] = EngineSource(self._session, url)
        return found


def _tokens(answer: bytes) -> Numbers:
    """Decode a response. Raises ValueError, OverflowError or RecursionError if it is malformed."""
    return np.array(msgspec.json.decode(answer, type=_Answer).tokens, dtype=np.uint32)
