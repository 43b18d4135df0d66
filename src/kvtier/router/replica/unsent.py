"""How much of what was written has not arrived at the other side yet.

Why the kernel is asked: it holds megabytes of its own, and a transport with TLS does not tell what
the one below it holds; but while that holds anything, so does the kernel.
"""

import asyncio
import fcntl
import sys
import termios


def unsent_bytes(transport: asyncio.WriteTransport) -> int:
    """Here and in the kernel; 0 where the connection has ended."""
    if transport.is_closing():
        return 0
    held = transport.get_write_buffer_size()
    if (of := transport.get_extra_info("socket")) is None:
        return held
    told = fcntl.ioctl(of.fileno(), termios.TIOCOUTQ, bytes(4))
    return held + int.from_bytes(told, sys.byteorder)
