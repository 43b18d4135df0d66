"""Predecessors of keys, derived from token positions in each group."""

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import OffloadKey, ReqContext, make_offload_key

from kvtier.connectors.vllm.chains import RequestChains

TOKENS = {0: 16, 1: 32}


def key(number: int, group: int) -> OffloadKey:
    return make_offload_key(number.to_bytes(32, "big"), group)


def request(blocks: int) -> ReqContext:
    context = ReqContext(req_id="r")
    for number in range(1, blocks + 1):
        context.set_offload_key_position(key(number, 0), number * 16)
        if number % 2 == 0:
            context.set_offload_key_position(key(number, 1), number * 16)
    return context


def test_parents_are_the_preceding_blocks() -> None:
    context = request(4)
    keys = [key(number, 0) for number in (1, 2, 3, 4)]
    parents = RequestChains.of(context).parents(keys, context, TOKENS)
    assert parents == [None, key(1, 0), key(2, 0), key(3, 0)]


def test_parents_are_in_the_same_group() -> None:
    context = request(4)
    parents = RequestChains.of(context).parents([key(4, 1), key(2, 1)], context, TOKENS)
    assert parents == [key(2, 1), None]


def test_later_blocks_extend_the_chain() -> None:
    context = request(2)
    chains = RequestChains.of(context)
    assert chains.all_keys(context, {0: 16, 1: 32}) == [key(1, 0), key(2, 0), key(2, 1)]
    context.set_offload_key_position(key(3, 0), 48)
    assert RequestChains.of(context) is chains
    assert chains.parents([key(3, 0)], context, TOKENS) == [key(2, 0)]


def test_parent_of_partial_tail_is_last_whole_block() -> None:
    context = request(2)
    tail = make_offload_key(b"t" * 32, 0)
    context.set_offload_key_position(tail, 37)
    chains = RequestChains.of(context)
    assert chains.parents([tail], context, TOKENS) == [key(2, 0)]
    assert tail not in chains.all_keys(context, TOKENS)
