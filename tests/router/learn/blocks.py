"""Two blocks of one prompt, as the tests of sinks report them to a precise index."""

from kvtier.index.fleet.events import BlocksStored
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import TokenPrompt

TOKENS = list(range(32))


def held(index: PreciseIndex, replica: str, model: str) -> int:
    """Return how many tokens of the prompt the replica holds."""
    return index.match(TokenPrompt(TOKENS, model), [replica])[0].best_tokens


def stored(tier: str, *, shared: bool) -> BlocksStored:
    """Return the event that stores both blocks in `tier`."""
    return BlocksStored(
        names=[1, 2],
        parent=None,
        token_ids=TOKENS,
        block_tokens=16,
        tier=tier,
        is_shared=shared,
    )
