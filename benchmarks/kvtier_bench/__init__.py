"""The benchmarks of kvtier: each returns rows, which are compared with references and targets."""
