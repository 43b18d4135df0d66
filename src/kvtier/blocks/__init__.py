"""What is cached: the identity of a block, its bytes, and announcements about it."""
