"""The prefix chains of a request, that is, the predecessor of each of its keys.

vLLM offers keys without their predecessors, but records for each key of a request the token
position at which it ends. The chain of every KV-cache group follows from these positions.
"""

from collections.abc import Sequence
from itertools import islice

from vllm.v1.kv_offload.base import OffloadKey, ReqContext, get_offload_group_idx

from kvtier.blocks.key import UNKNOWN_PARENT, BlockKey


class RequestChains:
    """The chains of one request, extended as keys are added and kept in the request's context."""

    def __init__(self) -> None:
        self._seen = 0
        self._aligned: dict[int, dict[int, BlockKey]] = {}

    @classmethod
    def of(cls, context: ReqContext) -> "RequestChains":
        """Return the chains of the request; the first call creates them."""
        chains = context.get_state(cls)
        if chains is None:
            chains = cls()
            context.set_state(chains)
        return chains

    def parents(
        self, keys: Sequence[OffloadKey], context: ReqContext, tokens: dict[int, int]
    ) -> list[BlockKey | None]:
        """Return the predecessor of each key in its group; None for the first block of a prefix.

        The predecessor is UNKNOWN_PARENT where vLLM does not report it. `tokens[group]` is the
        number of tokens that a key of the group covers.
        """
        self._read(context, tokens)
        return [self._parent(key, context, tokens) for key in keys]

    def group_chains(self, context: ReqContext, tokens: dict[int, int]) -> list[list[BlockKey]]:
        """Return the keys of every group of the request, each in prefix order."""
        self._read(context, tokens)
        return [[key for _, key in sorted(group.items())] for group in self._aligned.values()]

    def all_keys(self, context: ReqContext, tokens: dict[int, int]) -> list[BlockKey]:
        """Return all keys of the request, group after group, each in prefix order."""
        return [key for chain in self.group_chains(context, tokens) for key in chain]

    def _parent(
        self, key: OffloadKey, context: ReqContext, tokens: dict[int, int]
    ) -> BlockKey | None:
        group = get_offload_group_idx(key)
        end = context.get_offload_key_position(key)
        if end is None:
            return UNKNOWN_PARENT
        # The predecessor is the last whole block that ends before this key does.
        number = (end - 1) // tokens[group]
        return self._aligned.get(group, {}).get(number, UNKNOWN_PARENT) if number else None

    def _read(self, context: ReqContext, tokens: dict[int, int]) -> None:
        positions = context._offload_key_positions
        for key, end in islice(positions.items(), self._seen, None):
            group = get_offload_group_idx(key)
            if end % tokens[group] == 0:
                self._aligned.setdefault(group, {})[end // tokens[group]] = BlockKey(key)
        self._seen = len(positions)
