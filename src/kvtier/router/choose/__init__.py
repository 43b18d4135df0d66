"""How a profile chooses a replica: the contracts, the plugins, and a decision as data."""
