"""The processes of a kill run: started by fork, killed by SIGKILL, begun anew.

Why fork: three hundred interpreters would take longer to start than to be killed. The parent
has one thread. Invariants: no child outlives the parent by more than a moment; one that ends
before it is killed is counted, because none should.
"""

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from kvtier_bench.kill.roles import ROLES, Board, Life


class Cast:
    """One process for each of `roles`; `kill` one, and it begins its next life."""

    def __init__(
        self, folder: Path, board: Board, roles: Sequence[str], next_seed: Callable[[], int]
    ) -> None:
        """`next_seed` gives every life its own."""
        self.failures = 0
        """Processes that ended by themselves."""
        self._folder = folder
        self._board = board
        self._next_seed = next_seed
        self._roles = list(roles)
        self._pids = [self._begin(number) for number in range(len(self._roles))]

    def kill(self, number: int) -> None:
        """SIGKILL, and the next life."""
        self._end(number)
        self._pids[number] = self._begin(number)

    def end(self) -> None:
        """SIGKILL for all. Idempotent."""
        for number in range(len(self._pids)):
            self._end(number)
        self._pids = []

    def _end(self, number: int) -> None:
        pid = self._pids[number]
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self.failures += not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)

    def _begin(self, number: int) -> int:
        role = self._roles[number]
        parent = os.getpid()
        life = Life(
            self._folder,
            self._board,
            number,
            self._next_seed(),
            lambda: os.getppid() == parent,
        )
        pid = os.fork()
        if pid:
            return pid
        try:
            ROLES[role](life)
        except BaseException:
            traceback.print_exc()
        finally:
            # Nothing of the parent's may run in a child: no cleaning up, no printing.
            os._exit(3)
