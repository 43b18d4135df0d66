"""The cache: decides which tier holds which block, what is evicted and what is transferred."""
