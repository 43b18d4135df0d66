"""Which names mean one model, by what replicas list in `/v1/models`.

An engine may serve one model under several names, and its adapters under names of their own. Its
events tell of the model without a name, and of an adapter by the adapter's. So names that a
replica lists with one `root`, and without a `parent`, are one: prompts and events take the least
of them, whichever of them a request says, and an adapter stays what it is called.

Invariant: two names are one exactly if a chain of replicas says so; what a replica lists in a
form that is not understood stands for itself.
"""

from collections.abc import Iterable, Sequence

import aiohttp
import msgspec

from kvtier.router.fleet.members import ModelCard
from kvtier.router.fleet.models import MAX_BYTES, read_cards


class ModelIdentity(msgspec.Struct, frozen=True):
    """What of a card tells names apart."""

    id: str
    root: str | None = None
    """The model's path, or the adapter's."""
    parent: str | None = None
    """Of an adapter: its model."""


_entry = msgspec.json.Decoder(ModelIdentity)


class ModelAliases:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[ModelIdentity, ...]] = {}
        self._cards: dict[str, Sequence[ModelCard]] = {}
        self._called: dict[str, str] = {}

    def update(self, replica: str, cards: Sequence[ModelCard]) -> None:
        """The replica lists these. Free where they are the ones of the last time."""
        if self._cards.get(replica) is cards:
            return
        self._cards[replica] = cards
        entries = tuple(map(_read, cards))
        if self._entries.get(replica) != entries:
            self._entries[replica] = entries
            self._called = _called(self._entries.values())

    def remove(self, replica: str) -> None:
        """It is gone. Idempotent."""
        self._cards.pop(replica, None)
        if self._entries.pop(replica, None) is not None:
            self._called = _called(self._entries.values())

    def canonical(self, name: str) -> str:
        """What prompts and indexes call the model or adapter of this name."""
        return self._called.get(name, name)

    def base_model(self, replica: str) -> str | None:
        """What they call the model whose blocks it tells of; None where it lists nothing."""
        entries = self._entries.get(replica, ())
        first = next((one for one in entries if one.parent is None), None)
        return None if first is None else self.canonical(first.id)

    def models(self, name: str) -> frozenset[str]:
        """All models that go by a name, or lie at this path."""
        found = {
            self.canonical(one.id)
            for entries in self._entries.values()
            for one in entries
            if one.parent is None and (name in (one.id, one.root) or _is_of(one.root, name))
        }
        return frozenset(found)


async def fetch_models(
    session: aiohttp.ClientSession, url: str, timeout_s: float
) -> tuple[ModelCard, ...]:
    """What a replica lists, where nobody else asks; nothing where it cannot be had."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with session.get(
            f"{url}/v1/models", timeout=timeout, allow_redirects=False
        ) as answer:
            text = await answer.content.read(MAX_BYTES)
            while not answer.content.at_eof() and len(text) < MAX_BYTES:
                text += await answer.content.read(MAX_BYTES - len(text))
            return read_cards(text) if answer.status == 200 else ()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return ()


def _read(card: ModelCard) -> ModelIdentity:
    try:
        return _entry.decode(card.text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ModelIdentity(card.id)


def _is_of(root: str | None, name: str) -> bool:
    """Whether a path lies in the hub's cache of the model of this name."""
    return root is not None and f"/models--{name.replace('/', '--')}/snapshots/" in root


def _called(lists: Iterable[Sequence[ModelIdentity]]) -> dict[str, str]:
    """The least name of each model by all its other names."""
    leads: dict[str, str] = {}

    def lead(name: str) -> str:
        while (above := leads.get(name, name)) != name:
            name = above
        return name

    for entries in lists:
        first: dict[str, str] = {}
        for one in entries:
            if one.parent is None and one.root:
                low, high = sorted((lead(first.setdefault(one.root, one.id)), lead(one.id)))
                leads[high] = low
    return {name: lead(name) for name in leads if lead(name) != name}
