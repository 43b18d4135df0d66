"""Where the tokens of a prompt come from: a tokenizer in this process, or the engine's own.

Invariants: the event loop waits for threads and sockets and is not held by them; a source that
cannot answer raises Unavailable, and nothing else.
"""

import asyncio
from collections import OrderedDict
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
from kvtier.index.fleet.hashing import Numbers
from kvtier.router.fleet.members import Member
from kvtier.router.learn.prompts import ChatPrompt, TokenSource
from kvtier.router.learn.template import ChatTemplate, TemplateError
from kvtier.router.learn.tokenizer import Tokenizer

EVENTS: Final = "kv-events"
"""The label that says where a replica publishes its events."""
ANSWER_MAX: Final = 64 << 20
TIMEOUT_S: Final = 2.0
REST_S: Final = 10.0
"""So long an engine that did not answer is not asked: no request waits for it meanwhile."""
CACHED_BYTES: Final = 128 << 20

_ENTRY_BYTES: Final = 200


class LocalSource:
    """A folder with `tokenizer.json` and a chat template. Close it."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidSettings for a folder without a tokenizer; takes 0.1 to 1 s.

        A model without a chat template has no chats: they are unavailable.
        """
        self._tokenizer = Tokenizer(folder)
        self._template: ChatTemplate | None = None
        try:
            self._template = ChatTemplate(folder)
        except InvalidSettings as error:
            self._reason = str(error)
        # One: the cache of beginnings belongs to it, and tokenizing uses all cores by itself.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvtier-tokenize")

    async def completion(self, text: str, model: str, *, add_special_tokens: bool) -> Numbers:
        """See TokenSource."""
        return await self._run(self._completion, text, add_special_tokens)

    async def chat(self, conversation: ChatPrompt, model: str) -> Numbers:
        """See TokenSource."""
        return await self._run(self._chat, conversation)

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _run(self, call: Any, *arguments: Any) -> Numbers:
        loop = asyncio.get_running_loop()
        try:
            found: Numbers = await loop.run_in_executor(self._thread, call, *arguments)
        except (RuntimeError, UnicodeError, TypeError, OverflowError) as error:
            raise Unavailable(f"the tokenizer cannot read it: {error}") from error
        return found

    def _completion(self, text: str, add_special_tokens: bool) -> Numbers:  # noqa: FBT001
        return self._tokenizer.tokens(text, add_special_tokens=add_special_tokens)

    def _chat(self, conversation: ChatPrompt) -> Numbers:
        if self._template is None:
            raise Unavailable(self._reason)
        try:
            text = self._template.render(conversation)
        except TemplateError as error:
            raise Unavailable(f"the chat template refuses it: {error}") from error
        return self._tokenizer.tokens(text, add_special_tokens=False)


class _Answer(msgspec.Struct):
    tokens: list[int]


class EngineSource:
    """An engine's own `/tokenize`. Answers are remembered, as far as `cached_bytes` reach."""

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
        """`url`: `http://host:port` of one engine that serves the model."""
        self._clock = MonotonicClock() if clock is None else clock
        self._rests_until_s = float("-inf")
        self._session = session
        self._url = f"{url.rstrip('/')}/tokenize"
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._cached_bytes = cached_bytes
        self._known: OrderedDict[int, Numbers] = OrderedDict()
        self._known_bytes = 0

    @property
    def is_resting(self) -> bool:
        """Whether it did not answer a moment ago, so that it is not asked."""
        return self._clock.now_s() < self._rests_until_s

    async def completion(self, text: str, model: str, *, add_special_tokens: bool) -> Numbers:
        """See TokenSource."""
        asked = {"model": model, "prompt": text, "add_special_tokens": add_special_tokens}
        return await self._ask(asked)

    async def chat(self, conversation: ChatPrompt, model: str) -> Numbers:
        """See TokenSource."""
        asked: dict[str, Any] = {
            "model": model,
            "messages": conversation.messages,
            "add_generation_prompt": conversation.add_generation_prompt,
        }
        if conversation.tools:
            asked["tools"] = conversation.tools
        if conversation.kwargs:
            asked["chat_template_kwargs"] = dict(conversation.kwargs)
        return await self._ask(asked)

    async def _ask(self, asked: dict[str, Any]) -> Numbers:
        try:
            body = msgspec.json.encode(asked)
        except (TypeError, ValueError, RecursionError) as error:
            raise Unavailable(f"no JSON: {error}") from error
        digest = xxhash.xxh3_128_intdigest(body)
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
            return known
        if self.is_resting:
            raise Unavailable(f"{self._url} did not answer a moment ago")
        try:
            answer = await self._post(body)
            found = await asyncio.to_thread(_tokens, answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._rests_until_s = self._clock.now_s() + REST_S
            raise Unavailable(f"{self._url}: {error!r}") from error
        except (ValueError, OverflowError, RecursionError) as error:
            raise Unavailable(f"{self._url}: {error!r}") from error
        self._remember(digest, found)
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
                    raise ValueError("the answer does not end")
            return bytes(pieces)

    def _remember(self, digest: int, tokens: Numbers) -> None:
        if digest not in self._known:
            self._known_bytes += tokens.nbytes + _ENTRY_BYTES
        self._known[digest] = tokens
        while self._known_bytes > self._cached_bytes:
            _, old = self._known.popitem(last=False)
            self._known_bytes -= old.nbytes + _ENTRY_BYTES


class EngineSources(Mapping[str, TokenSource]):
    """By model, the engine that turns prompts into tokens: the first that publishes events.

    Where that one did not answer a moment ago, the next. Only those that publish: where nobody
    tells tokens, comparing characters does as well and asks nobody.
    """

    def __init__(self, members: Callable[[], Iterable[Member]]) -> None:
        self._members = members
        self._session: aiohttp.ClientSession | None = None
        self._sources: dict[str, EngineSource] = {}

    def use(self, session: aiohttp.ClientSession) -> None:
        """Ask through it."""
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
        """Nobody is asked there any more. Idempotent."""
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
    """Raises ValueError, OverflowError or RecursionError for what is no answer."""
    return np.array(msgspec.json.decode(answer, type=_Answer).tokens, dtype=np.uint32)
