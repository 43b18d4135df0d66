"""kvtier: a prefix cache below the memory of the accelerator.

It keeps the KV blocks for which an LLM engine has no room in host RAM, on local disks and in
shared storage, and loads them when that is faster than computing them again. This module contains
only the version: engines import it in every process, so it must stay cheap.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kvtier")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+source"

__all__ = ["__version__"]
