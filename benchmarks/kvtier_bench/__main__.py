"""Run a benchmark: `python -m kvtier_bench --help`, with `benchmarks/` on PYTHONPATH."""

from kvtier_bench.cli import bench

if __name__ == "__main__":
    bench(prog_name="python -m kvtier_bench")
