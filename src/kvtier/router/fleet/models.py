"""The router's `/v1/models`: one list of the models and adapters that all replicas serve.

A model that several replicas serve is listed once, as the first of them describes it.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from kvtier.router.fleet.members import Fleet, ModelCard, ReplicaHealth

MAX_BYTES: Final = 1 << 20
"""The longest `/v1/models` response that is accepted from a replica."""


class _Id(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


class _Bare(msgspec.Struct):
    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "kvtier"


_list = msgspec.json.Decoder(_List)
_id = msgspec.json.Decoder(_Id)


def read_cards(text: bytes) -> tuple[ModelCard, ...]:
    """Parse a replica's `/v1/models` response. Raises ValueError if it is not a list of models."""
    try:
        entries = [bytes(entry) for entry in _list.decode(text).data]
        return tuple(ModelCard(_id.decode(entry).id, entry) for entry in entries)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def merged(fleet: Fleet) -> list[ModelCard]:
    """Return the models that healthy members serve, in the order of the fleet."""
    cards: dict[str, ModelCard] = {}
    for member in fleet.members:
        if member.health is not ReplicaHealth.HEALTHY:
            continue
        described = {card.id: card for card in member.cards}
        for model in _in_order(member.cards, member.endpoint.models):
            if model not in cards:
                bare = ModelCard(model, msgspec.json.encode(_Bare(model)))
                cards[model] = described.get(model, bare)
    return list(cards.values())


def render(cards: Sequence[ModelCard]) -> bytes:
    """Return the body of `/v1/models`; each entry is the JSON its replica sent."""
    return b'{"object":"list","data":[' + b",".join(card.text for card in cards) + b"]}"


def _in_order(cards: Sequence[ModelCard], models: frozenset[str]) -> list[str]:
    listed = [card.id for card in cards if card.id in models]
    return listed + sorted(models.difference(listed))
