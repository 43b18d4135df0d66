import pytest

from kvtier.blocks.layout import ALIGNMENT, BlockLayout


@pytest.mark.parametrize(
    ("block_bytes", "slot_bytes"),
    [(1, 4_096), (4_095, 4_096), (4_096, 4_096), (4_097, 8_192), (2_949_120, 2_949_120)],
)
def test_slot_bytes_are_block_bytes_rounded_up(block_bytes: int, slot_bytes: int) -> None:
    layout = BlockLayout(block_bytes=block_bytes, tokens_per_block=128)
    assert layout.slot_bytes == slot_bytes
    assert layout.slot_bytes % ALIGNMENT == 0
