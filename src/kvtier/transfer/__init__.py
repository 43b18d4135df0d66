"""Moving blocks between RAM and a tier, off the engine's thread."""
