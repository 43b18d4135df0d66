"""The tier over a real bucket: two engines, a server that dies, and refusals at start."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from kvtier.blocks.key import BlockKey
from kvtier.clock import MonotonicClock
from kvtier.errors import InvalidSettings
from kvtier.testing.spaces import sample_space
from kvtier.testing.tiers import SharedTierContract, key
from kvtier.tiers.base import Outcome, Tier
from kvtier.tiers.objectstore.bucket import BucketTier
from kvtier.tiers.shared.format import segment_name
from tests.tiers.objectstore.servers import BUCKET, Weed
from tests.tiers.shared.segments import LAYOUT, SPACE, keys, read, write

DONE, MISSING = Outcome.DONE, Outcome.MISSING


class TestBucketTier(SharedTierContract):
    @pytest.fixture(autouse=True)
    def server(self, s3: Weed) -> Weed:
        return s3

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


def test_blocks_of_a_chain_are_one_object(url: str) -> None:
    tier = BucketTier(url, LAYOUT, SPACE, segment_blocks=4)
    other = BucketTier(url, LAYOUT, SPACE, segment_blocks=4)
    assert write(tier, keys(10)) == [DONE] * 10
    assert other.find(keys(12)) == [DONE] * 10 + [MISSING] * 2
    assert read(other, keys(10)) == [DONE] * 10
    tier.close()
    other.close()


def test_a_server_that_dies_is_a_miss_and_one_that_returns_a_hit(
    url: str, s3: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = BucketTier(url, LAYOUT, SPACE)
    assert write(tier, keys(2)) == [DONE] * 2
    clock = MonotonicClock()
    s3.kill()
    try:
        assert read(tier, keys(2)) == [Outcome.FAILED] * 2
        assert tier.find([key(70)]) == [Outcome.FAILED]
    finally:
        s3.start()
    give_up_s = clock.now_s() + 60
    while read(tier, keys(2)) != [DONE] * 2:
        assert clock.now_s() < give_up_s
        clock.sleep(0.2)
    tier.close()


def test_a_bucket_that_is_not_there_is_said_at_start(url: str) -> None:
    with pytest.raises(InvalidSettings, match=r"objectstore\.url"):
        BucketTier("s3://no-such-bucket/kv", LAYOUT, SPACE)


def test_another_secret_is_refused_by_its_own_name(url: str, tmp_path: Path) -> None:
    BucketTier(url, LAYOUT, SPACE).close()
    secret = tmp_path / "key"
    secret.write_text("ab" * 32)
    secret.chmod(0o600)
    with pytest.raises(InvalidSettings, match=r"objectstore\.key_file"):
        BucketTier(url, LAYOUT, SPACE, key_file=secret)
