"""Contract suites and fault injection, shipped so that outsiders can prove their own plug-in."""
