"""CHOOSING an endpoint: the replica that has the prefix, in the fastest tier, with room."""
