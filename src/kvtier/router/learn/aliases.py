"""Aliases of models, from what replicas list in `/v1/models`.

An engine may serve one model under several names, and its adapters under names of their own. Its
events do not name the model, and they name an adapter by the adapter's name. Therefore all names
that a replica lists with the same `root` and without a `parent` are aliases: prompts and events use
the lexicographically least of them, whichever one a request uses. Adapters keep their names.

Invariant: two names are aliases exactly if a chain of replicas lists them so; a model whose entry
is malformed has no aliases.
"""

from collections.abc import Iterable, Sequence

import aiohttp
import msgspec

from kvtier.router.fleet.members import ModelCard
from kvtier.router.fleet.models import MAX_BYTES, read_cards


class ModelIdentity(msgspec.Struct, frozen=True):
    """The fields of a ModelCard that determine whether two names are aliases."""

    id: str
    root: str | None = None
    """The path of the model or adapter."""
    parent: str | None = None
    """An adapter's base model; None for a model."""


_entry = msgspec.json.Decoder(ModelIdentity)


class ModelAliases:
    """The aliases over all replicas. Belongs to one event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[ModelIdentity, ...]] = {}
        self._cards: dict[str, Sequence[ModelCard]] = {}
        self._canonical: dict[str, str] = {}

    def update(self, replica: str, cards: Sequence[ModelCard]) -> None:
        """Set what `replica` lists. Cheap if `cards` is the same object as at the last call."""
        if self._cards.get(replica) is cards:
            return
        self._cards[replica] = cards
        entries = tuple(map(_read, cards))
        if self._entries.get(replica) != entries:
            self._entries[replica] = entries
            self._canonical = _canonical(self._entries.values())

    def remove(self, replica: str) -> None:
        """Remove a replica that left the fleet. Idempotent."""
        self._cards.pop(replica, None)
        if self._entries.pop(replica, None) is not None:
            self._canonical = _canonical(self._entries.values())

    def canonical(self, name: str) -> str:
        """Return the name that prompts and indexes use for the model or adapter `name`."""
        return self._canonical.get(name, name)

    def base_model(self, replica: str) -> str | None:
        """Return the canonical name of the replica's model; None if it lists no model."""
        entries = self._entries.get(replica, ())
        first = next((one for one in entries if one.parent is None), None)
        return None if first is None else self.canonical(first.id)

    def models(self, name: str) -> frozenset[str]:
        """Return the canonical names of all models whose id, path or Hugging Face id is `name`."""
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
    """Return what the replica at `url` lists in `/v1/models`; empty if that fails."""
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
    """Return whether `root` is a snapshot of the model `name` in the Hugging Face cache."""
    return root is not None and f"/models--{name.replace('/', '--')}/snapshots/" in root


def _canonical(lists: Iterable[Sequence[ModelIdentity]]) -> dict[str, str]:
    """Return the least name of each model by each of its other names."""
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
