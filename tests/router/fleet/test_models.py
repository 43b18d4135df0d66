import json

import pytest

from kvtier.router.fleet.members import Fleet
from kvtier.router.fleet.models import merged, read_cards, render
from kvtier.router.fleet.replicas import Replica


def test_model_cards_keep_the_json_of_the_replica() -> None:
    (card,) = read_cards(b'{"object":"list","data":[{"id":"m", "max_model_len": 4096}],"x":1}')
    assert (card.id, card.text) == ("m", b'{"id":"m", "max_model_len": 4096}')


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"data":[{}]}', b'{"data":[{"id":1}]}'])
def test_read_cards_rejects_malformed_lists(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_cards(text)


def test_model_list_merges_models_of_healthy_members() -> None:
    fleet = Fleet()
    fleet.update(
        [
            Replica(name="a", url="http://a:1"),
            Replica(name="b", url="http://b:1"),
            Replica(name="c", url="http://c:1", models=frozenset(("declared",))),
            Replica(name="d", url="http://d:1"),
        ]
    )
    a, b, c, d = fleet.members
    fleet.mark_healthy(a, read_cards(b'{"data":[{"id":"m","of":"a"},{"id":"x"}]}'), 0.0)
    fleet.mark_healthy(b, read_cards(b'{"data":[{"id":"m","of":"b"},{"id":"lora"}]}'), 0.0)
    fleet.mark_healthy(c, (), 0.0)
    fleet.mark_unhealthy(d, "gone")
    listed = json.loads(render(merged(fleet)))
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["m", "x", "lora", "declared"]
    assert listed["data"][0]["of"] == "a"
    assert listed["data"][3]["object"] == "model"
