"""The log of decisions: what `kvtier route replay` reads.

Invariants: a decision is one append and begins on a line of its own, whatever the last one left
behind (a kill or a full disk may have cut it); a log that cannot be written is said once and
costs no request anything.
"""

import logging
import os

from kvtier.errors import InvalidSettings
from kvtier.router.choose.decision import Decision
from kvtier.router.choose.record import line, record

_log = logging.getLogger(__name__)


class DecisionLog:
    """One file, appended to; readable for its owner only, since it tells who asked when."""

    def __init__(self, path: str) -> None:
        """Raises InvalidSettings where the file cannot be opened."""
        self._path = path
        self._failed = False
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise InvalidSettings(
                f"--decisions: {path} cannot be written: {error.strerror}"
            ) from error
        self._before = b"\n" if os.fstat(self._descriptor).st_size else b""

    def add(self, decision: Decision, headers: frozenset[str]) -> None:
        """Call it before the endpoints change; about 10 us and 3 us an endpoint."""
        text = self._before + line(record(decision, headers))
        try:
            whole = os.write(self._descriptor, text) == len(text)
            self._before = b"" if whole else b"\n"
        except OSError as error:
            if not self._failed:
                _log.warning("decisions are not logged: %s: %s", self._path, error.strerror)
            self._failed = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
