"""The prefix chains of a request: which key comes before which.

vLLM offers keys without their predecessors, but notes for each key of a request the token
position it ends at. From these the chain of every KV-cache group follows.
"""

from collections.abc import Sequence
from itertools import islice

from vllm.v1.kv_offload.base import OffloadKey, ReqContext, get_offload_group_idx

from kvtier.blocks.key import UNKNOWN_PARENT, BlockKey


class RequestChains:
    """Positions of one request's keys, read incrementally; kept in the request's context."""

    def __init__(self) -> None:
        self._seen = 0
        self._aligned: dict[int, dict[int, BlockKey]] = {}

    @classmethod
    def of(cls, context: ReqContext) -> "RequestChains":
        """The chains of this request, made at the first call."""
        chains = context.get_state(cls)
        if chains is None:
            chains = cls()
            context.set_state(chains)
        return chains

    def parents(
        self, keys: Sequence[OffloadKey], context: ReqContext, tokens: dict[int, int]
    ) -> list[BlockKey | None]:
        """The predecessor of each key in its group, None for the first block of a prefix.

        UNKNOWN_PARENT stands where vLLM does not say which block comes before.
        `tokens[group]` are the tokens one key of the group covers.
        """
        self._read(context, tokens)
        return [self._parent(key, context, tokens) for key in keys]

    def chains(self, context: ReqContext, tokens: dict[int, int]) -> list[list[BlockKey]]:
        """The keys of every group of the request, from its first block on, in prefix order."""
        self._read(context, tokens)
        return [[key for _, key in sorted(group.items())] for group in self._aligned.values()]

    def chain(self, context: ReqContext, tokens: dict[int, int]) -> list[BlockKey]:
        """All keys of the request, group after group, each in prefix order."""
        return [key for chain in self.chains(context, tokens) for key in chain]

    def _parent(
        self, key: OffloadKey, context: ReqContext, tokens: dict[int, int]
    ) -> BlockKey | None:
        group = get_offload_group_idx(key)
        end = context.get_offload_key_position(key)
        if end is None:
            return UNKNOWN_PARENT
        # The block before: the last whole one that ends before this key does.
        number = (end - 1) // tokens[group]
        return self._aligned.get(group, {}).get(number, UNKNOWN_PARENT) if number else None

    def _read(self, context: ReqContext, tokens: dict[int, int]) -> None:
        positions = context._offload_key_positions
        for key, end in islice(positions.items(), self._seen, None):
            group = get_offload_group_idx(key)
            if end % tokens[group] == 0:
                self._aligned.setdefault(group, {})[end // tokens[group]] = BlockKey(key)
        self._seen = len(positions)
