"""Why a port cannot be listened on, in words that name its flag, and its address once."""

import os

from kvtier.errors import InvalidSettings


def cannot_listen(flags: str, host: str, port: int, error: OSError) -> InvalidSettings:
    """To be raised. The texts of asyncio's errors name the address too, so they are left out."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    number = error.errno or 0
    # Those of name look-ups are below 0 and have texts of their own.
    reason = os.strerror(number) if number > 0 else error.strerror or str(error)
    return InvalidSettings(f"{flags}: {shown} cannot be listened on: {reason}")
