"""kvtier: the prefix cache below the accelerator's memory.

It keeps the KV blocks that an LLM engine has no room for in host RAM and on local disk, and
brings them back when that is faster than computing them again. This module holds nothing but
the version: importing it must stay cheap, because engines import it in every process.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kvtier")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+source"

__all__ = ["__version__"]
