"""The exceptions that kvtier raises.

There is a class for each case that a caller handles differently. In the serving path none of them
reaches the engine: a failure becomes a miss and is counted.
"""


class KVTierError(Exception):
    """Base class of all exceptions of kvtier."""


class InvalidSettings(KVTierError):
    """A setting is wrong. Raised at start only; the message names the setting and the fix."""


class Unavailable(KVTierError):
    """A tier cannot serve now (full, I/O error, no permission). Treat as a miss; retry later."""


class Corrupt(KVTierError):
    """Stored bytes failed verification. Quarantine them, count, and treat them as a miss."""


class Closed(KVTierError):
    """An object was used after it had been closed."""


class Fenced(KVTierError):
    """A lease was lost; its former holder must stop writing."""
