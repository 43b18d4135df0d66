"""The demo: what kvtier does for a real engine, in five minutes on any machine."""

from kvtier_bench.demo.run import run_demo
from kvtier_bench.demo.sizing import AIM_S

__all__ = ["AIM_S", "run_demo"]
