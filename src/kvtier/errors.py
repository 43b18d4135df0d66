"""The errors kvtier raises, and nothing else.

A class exists here only where a caller would act differently. In the serving path none of
these reaches an engine: an operational failure becomes a miss and a counter.
"""


class KVTierError(Exception):
    """Base of every error kvtier raises on purpose."""


class InvalidSettings(KVTierError):
    """Start-up only: a setting is wrong. The message names the setting and the fix."""


class Unavailable(KVTierError):
    """A tier cannot serve now (full, EIO, permission lost). Serve as a miss, try again later."""


class Corrupt(KVTierError):
    """Stored bytes failed verification. Quarantine, count, serve as a miss."""


class Closed(KVTierError):
    """The object was closed; the caller kept it too long."""


class Fenced(KVTierError):
    """A lease was lost: stop writing."""
