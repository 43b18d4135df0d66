"""Where a block is."""
