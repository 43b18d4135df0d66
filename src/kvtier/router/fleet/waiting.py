"""The queue of requests that wait because every replica of their model is busy.

An engine over its limit slows down all of its requests, whereas a request that waits in the router
can still go to whichever replica has room first. The queue has a maximum length and a timeout.
Invariants: the requests that a replica can serve are served in order of arrival; a new request
never overtakes a waiting one; no request waits while a replica has room for it, because a request
that leaves the queue without using the room it was woken for wakes the next one.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from kvtier.router.choose.base import Endpoint
from kvtier.router.fleet.members import Fleet
from kvtier.router.request.refusals import overloaded, unavailable, unknown_model

RETRY_AFTER_S: Final = 1
_NONE: Final[frozenset[Endpoint]] = frozenset()


class _Want(NamedTuple):
    """What a request waits for: room at a replica of `model` that is not in `without`."""

    model: str
    without: frozenset[Endpoint]

    def is_met_by(self, endpoint: Endpoint) -> bool:
        return self.model in endpoint.models and endpoint not in self.without


class _Waiter:
    def __init__(self, want: _Want, woken: asyncio.Future[None]) -> None:
        self.want = want
        self.woken = woken


class Waiting:
    """The waiting requests of all models. Belongs to the event loop's thread."""

    def __init__(self, fleet: Fleet, in_flight: int, bound: int, timeout_s: float) -> None:
        """`in_flight` is the limit of requests per replica (0: none), `bound` that of the queue."""
        self._fleet = fleet
        self._in_flight = in_flight
        self._bound = bound
        self._timeout_s = timeout_s
        self._waiters: list[_Waiter] = []
        fleet.on_change(self._wake_all)

    def __len__(self) -> int:
        """Return the number of waiting requests."""
        return len(self._waiters)

    async def candidates(
        self, model: str, without: frozenset[Endpoint] = _NONE
    ) -> Sequence[Endpoint]:
        """Wait for endpoints of `model` with room, other than `without`, and return them.

        The caller must send its request before it awaits anything else. Raises Refusal: 404 if no
        replica serves the model, 503 if none of those that do is available, 429 if all are busy
        and the queue is full or the timeout expires.
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
        """Return the endpoints of `model` that have room now; empty if all are busy.

        Raises Refusal (404 or 503) if waiting for room would not help.
        """
        return self._with_room(_Want(model, _NONE))

    def has_room(self, endpoint: Endpoint) -> bool:
        """Return whether `endpoint` is below the limit of requests."""
        return not self._in_flight or endpoint.in_flight < self._in_flight

    def ended(self, endpoint: Endpoint) -> None:
        """Wake the first request that can use `endpoint`, where a request has just ended."""
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
            raise self._refusal(want.model)
        if not self._in_flight:
            return found
        return [endpoint for endpoint in found if self.has_room(endpoint)]

    def _unclaimed(self, found: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """Return the endpoints of `found` that no waiting request could use."""
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
            # Only after the caller has run is it known what it used: a profile may have refused
            # every endpoint that was found.
            loop.call_soon(self._pass_on, want.model)

    def _pass_on(self, model: str) -> None:
        """Wake the next requests for the room that a request which stopped waiting did not use."""
        if self._waiters:
            for endpoint in self._fleet.candidates(model):
                self.ended(endpoint)

    def _wake_all(self) -> None:
        for waiter in self._waiters:
            if not waiter.woken.done():
                waiter.woken.set_result(None)

    def _refusal(self, model: str) -> Exception:
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
