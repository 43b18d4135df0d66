"""Request handling that `kvtier route` and `kvtier epp` share: paths, bodies, refusals, TLS."""
