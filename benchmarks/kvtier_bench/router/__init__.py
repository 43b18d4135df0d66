"""The benchmarks of the router: its parts alone, a simulation, and real engines behind it."""
