"""The tier over a real bucket: two engines, a server that dies, refusals at start."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import BlockLayout
from kvtier.clock import MonotonicClock
from kvtier.errors import InvalidSettings
from kvtier.testing.samples import sample_space
from kvtier.testing.tiers import SharedTierContract, key
from kvtier.tiers.base import BlockMove, Outcome, Tier
from kvtier.tiers.objectstore.tier import BucketTier
from kvtier.tiers.shared.format import segment_name
from kvtier.transfer.base import Direction, Transfer
from kvtier.transfer.breaker import BreakerState
from kvtier.transfer.engine import TransferEngine
from tests.s3 import BUCKET, Weed
from tests.tiers.shared.segments import LAYOUT, SPACE, keys, read, write

DONE, MISSING = Outcome.DONE, Outcome.MISSING


class TestBucketTier(SharedTierContract):
    @pytest.fixture(autouse=True)
    def server(self, s3: None) -> None:
        """Let `make_tier` find the shared server in the environment."""

    def make_tier(self, folder: Path, capacity_blocks: int) -> Tier:
        prefix = sha256(str(folder).encode()).hexdigest()[:32]
        return BucketTier(
            f"s3://{BUCKET}/{prefix}",
            self.layout,
            sample_space(),
            known_blocks=capacity_blocks,
        )

    def corrupt(self, tier: Tier, folder: Path, block: BlockKey) -> None:
        assert isinstance(tier, BucketTier)
        store = tier._store
        name = f"{tier._folder}/{segment_name(block)}"
        stat = store.stat(name)
        assert stat is not None
        content = bytearray(stat.size)
        buffer = np.frombuffer(content, np.uint8)
        store.read(name, 0, [buffer])
        content[4096] ^= 1
        store.put(name, bytes(content))


def test_write_packs_consecutive_blocks_into_one_object(bucket_url: str) -> None:
    tier = BucketTier(bucket_url, LAYOUT, SPACE, segment_blocks=4)
    other = BucketTier(bucket_url, LAYOUT, SPACE, segment_blocks=4)
    assert write(tier, keys(10)) == [DONE] * 10
    assert other.find(keys(12)) == [DONE] * 10 + [MISSING] * 2
    assert read(other, keys(10)) == [DONE] * 10
    tier.close()
    other.close()


@pytest.mark.parametrize(("block_bytes", "blocks"), [(4096, 1000), (1 << 20, 32), (40 << 20, 1)])
def test_object_size_is_bounded_by_one_request(
    bucket_url: str, block_bytes: int, blocks: int
) -> None:
    layout = BlockLayout(block_bytes=block_bytes, tokens_per_block=16)
    tier = BucketTier(
        bucket_url, layout, sample_space(block_bytes=block_bytes), segment_blocks=1000
    )
    assert tier.capabilities.batch_blocks == blocks
    tier.close()


def fetch(engine: TransferEngine, blocks: list[BlockKey]) -> list[Outcome]:
    """Read the blocks through the engine; FAILED at once where its breaker is open."""
    moves = [BlockMove(each, np.zeros(LAYOUT.slot_bytes, np.uint8)) for each in blocks]
    rows, parents = list(range(len(blocks))), [None, *blocks[:-1]]
    outcomes = [Outcome.FAILED] * len(blocks)
    is_let_in = engine.submit(Transfer(1, Direction.READ, rows, blocks, moves, parents))
    left = len(blocks) if is_let_in else 0
    while left:
        for done in engine.poll():
            left -= done.stop - done.start
            outcomes[done.start : done.stop] = done.outcomes or outcomes[done.start : done.stop]
        MonotonicClock().sleep(0.005)
    return outcomes


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_breaker_opens_when_server_dies_and_closes_when_it_returns(
    own_s3: Weed,
) -> None:
    tier = BucketTier(f"s3://{BUCKET}", LAYOUT, SPACE)
    engine = TransferEngine([tier], LAYOUT.slot_bytes, 64)
    assert write(tier, keys(2)) == [DONE] * 2
    assert fetch(engine, keys(2)) == [DONE] * 2
    own_s3.kill()
    assert tier.find([key(70)]) == [Outcome.FAILED]
    while engine.breaker(1, Direction.READ) is BreakerState.CLOSED:
        assert fetch(engine, keys(2)) == [Outcome.FAILED] * 2
    own_s3.start()
    while fetch(engine, keys(2)) != [DONE] * 2:
        MonotonicClock().sleep(0.1)
    assert engine.breaker(1, Direction.READ) is BreakerState.CLOSED
    assert engine.close(10.0)
    tier.close()


def test_missing_bucket_is_refused_at_start(bucket_url: str) -> None:
    with pytest.raises(InvalidSettings, match=r"objectstore\.url"):
        BucketTier("s3://no-such-bucket/kv", LAYOUT, SPACE)


def test_other_secret_names_the_objectstore_setting(bucket_url: str, tmp_path: Path) -> None:
    BucketTier(bucket_url, LAYOUT, SPACE).close()
    secret = tmp_path / "key"
    secret.write_text("ab" * 32)
    secret.chmod(0o600)
    with pytest.raises(InvalidSettings, match=r"objectstore\.key_file"):
        BucketTier(bucket_url, LAYOUT, SPACE, key_file=secret)
