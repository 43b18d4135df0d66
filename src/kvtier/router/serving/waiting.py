"""Requests that wait because every replica of their model is busy: in order, bounded, not for ever.

Why: an engine that is over its limit gets slower for everybody; a request that waits here can
still go to whichever replica has room first. Invariants: first come, first served among those
whom a replica can serve; a newcomer never overtakes; who leaves hands on what woke it.
"""

import asyncio
from collections.abc import Sequence

from kvtier.router.base import Endpoint
from kvtier.router.fleet import Fleet
from kvtier.router.serving.refusals import overloaded, unavailable, unknown_model

_RETRY_AFTER_S = 1


class _Waiter:
    def __init__(self, model: str, woken: asyncio.Future[None]) -> None:
        self.model = model
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

    async def candidates(self, model: str) -> Sequence[Endpoint]:
        """Endpoints of the model that have room; whoever is answered has to use it at once.

        Raises Refusal: 404 for a model that nobody serves, 503 where nobody can, 429 where all
        are busy and the line is full, or does not move in time.
        """
        is_first = not any(waiter.model == model for waiter in self._waiters)
        if is_first and (found := self.with_room(model)):
            return found
        if len(self._waiters) >= self._bound:
            raise overloaded(
                f"all replicas of `{model}` are busy and {len(self._waiters)} requests wait",
                _RETRY_AFTER_S,
            )
        return await self._wait(model)

    def with_room(self, model: str) -> Sequence[Endpoint]:
        """Endpoints of the model that have room now; none: all are busy.

        Raises Refusal: 404, or 503, where waiting for room would not help.
        """
        found = self._fleet.candidates(model)
        if not found:
            raise self._nobody(model)
        if not self._in_flight:
            return found
        return [endpoint for endpoint in found if endpoint.in_flight < self._in_flight]

    def ended(self, endpoint: Endpoint) -> None:
        """The endpoint has room for one more."""
        for waiter in self._waiters:
            if waiter.model in endpoint.models and not waiter.woken.done():
                waiter.woken.set_result(None)
                return

    async def _wait(self, model: str) -> Sequence[Endpoint]:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(model, loop.create_future())
        self._waiters.append(waiter)
        served = False
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    await waiter.woken
                    if found := self.with_room(model):
                        served = True
                        return found
                    waiter.woken = loop.create_future()
        except TimeoutError:
            raise overloaded(
                f"all replicas of `{model}` were busy for {self._timeout_s:g} s", _RETRY_AFTER_S
            ) from None
        finally:
            self._waiters.remove(waiter)
            if not served and waiter.woken.done():
                self._hand_on(model)

    def _hand_on(self, model: str) -> None:
        for waiter in self._waiters:
            if waiter.model == model and not waiter.woken.done():
                waiter.woken.set_result(None)
                return

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
