"""Requests that wait because every replica of their model is busy: in order, bounded, not for ever.

Why: an engine that is over its limit gets slower for everybody; a request that waits here can
still go to whichever replica has room first. Invariants: first come, first served among those
whom a replica can serve; a newcomer never overtakes; nobody sleeps while a replica has room for
it: who leaves, or uses less than it was offered, hands the rest on.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from kvtier.router.choose.base import Endpoint
from kvtier.router.fleet.members import Fleet
from kvtier.router.request.refusals import overloaded, unavailable, unknown_model

RETRY_AFTER_S: Final = 1
_NOBODY: Final[frozenset[Endpoint]] = frozenset()


class _Want(NamedTuple):
    """What a request waits for."""

    model: str
    without: frozenset[Endpoint]

    def is_met_by(self, endpoint: Endpoint) -> bool:
        return self.model in endpoint.models and endpoint not in self.without


class _Waiter:
    def __init__(self, want: _Want, woken: asyncio.Future[None]) -> None:
        self.want = want
        self.woken = woken


class Waiting:
    """Belongs to the event loop's thread."""

    def __init__(self, fleet: Fleet, in_flight: int, bound: int, timeout_s: float) -> None:
        """At most `in_flight` requests a replica (0: no limit), `bound` of them waiting here."""
        self._fleet = fleet
        self._in_flight = in_flight
        self._bound = bound
        self._timeout_s = timeout_s
        self._waiters: list[_Waiter] = []
        fleet.on_change(self._wake_all)

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiters)

    async def candidates(
        self, model: str, without: frozenset[Endpoint] = _NOBODY
    ) -> Sequence[Endpoint]:
        """Endpoints of the model that have room, save `without`; to be used at once, or not at all.

        Raises Refusal: 404 for a model that nobody serves, 503 where nobody can, 429 where all
        are busy and the line is full, or does not move in time.
        """
        want = _Want(model, without)
        if found := self._unclaimed(self._with_room(want)):
            return found
        if len(self._waiters) >= self._bound:
            raise overloaded(
                f"all replicas of `{model}` are busy and {len(self._waiters)} requests wait",
                RETRY_AFTER_S,
            )
        return await self._wait(want)

    def with_room(self, model: str) -> Sequence[Endpoint]:
        """Endpoints of the model that have room now; none: all are busy.

        Raises Refusal: 404, or 503, where waiting for room would not help.
        """
        return self._with_room(_Want(model, _NOBODY))

    def has_room(self, endpoint: Endpoint) -> bool:
        """Whether it is below its limit."""
        return not self._in_flight or endpoint.in_flight < self._in_flight

    def ended(self, endpoint: Endpoint) -> None:
        """A request has left the endpoint: there may be room."""
        if not self.has_room(endpoint):
            return
        for waiter in self._waiters:
            if not waiter.woken.done() and waiter.want.is_met_by(endpoint):
                waiter.woken.set_result(None)
                return

    def _with_room(self, want: _Want) -> Sequence[Endpoint]:
        found = self._fleet.candidates(want.model)
        if want.without:
            found = [endpoint for endpoint in found if endpoint not in want.without]
        if not found:
            raise self._nobody(want.model)
        if not self._in_flight:
            return found
        return [endpoint for endpoint in found if self.has_room(endpoint)]

    def _unclaimed(self, found: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """Those that nobody in line has a right to before a newcomer."""
        if not found or not self._waiters:
            return found
        wants = {waiter.want for waiter in self._waiters}
        return [one for one in found if not any(want.is_met_by(one) for want in wants)]

    async def _wait(self, want: _Want) -> Sequence[Endpoint]:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(want, loop.create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    await waiter.woken
                    if found := self._with_room(want):
                        return found
                    waiter.woken = loop.create_future()
        except TimeoutError:
            raise overloaded(
                f"all replicas of `{want.model}` were busy for {self._timeout_s:g} s",
                RETRY_AFTER_S,
            ) from None
        finally:
            self._waiters.remove(waiter)
            # Only then is it known what was used: a profile may have refused all that was found.
            loop.call_soon(self._hand_on, want.model)

    def _hand_on(self, model: str) -> None:
        """Somebody who waited for the model does no more; whoever can use its room may have it."""
        if self._waiters:
            for endpoint in self._fleet.candidates(model):
                self.ended(endpoint)

    def _wake_all(self) -> None:
        for waiter in self._waiters:
            if not waiter.woken.done():
                waiter.woken.set_result(None)

    def _nobody(self, model: str) -> Exception:
        members = self._fleet.members
        of_model = [member for member in members if model in member.endpoint.models]
        if not members:
            return unavailable("no replica is configured")
        if not of_model:
            unknown = [member for member in members if not member.endpoint.models]
            if len(unknown) < len(members):
                return unknown_model(model)
            of_model = unknown
        reasons = "; ".join(f"{member.replica.name}: {member.reason}" for member in of_model[:4])
        return unavailable(f"no replica of `{model}` can take requests ({reasons})")
