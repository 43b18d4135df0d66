"""Health checks: each replica is polled for its health and for the models it serves.

Circuit breakers are not enough: a replica without traffic fails no request, and one that recovers
must be noticed. Invariants: a check is bounded in time and in bytes; no response of a replica ends
its checks; they end when the replica is removed.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from kvtier.clock import Clock
from kvtier.router.choose.base import Endpoint
from kvtier.router.fleet.members import Fleet, FleetListener, FleetMember, ModelCard
from kvtier.router.fleet.models import MAX_BYTES, read_cards
from kvtier.router.replica.upstream import Upstream

_log = logging.getLogger(__name__)


class Prober(FleetListener):
    """Checks the health of every member of a fleet. Belongs to the event loop's thread."""

    def __init__(
        self,
        fleet: Fleet,
        upstream: Callable[[Endpoint], Upstream],
        clock: Clock,
        *,
        interval_s: float,
        timeout_s: float,
        key: str | None = None,
    ) -> None:
        """`key` is the API key sent to replicas. Nothing runs until a replica is added."""
        self._fleet = fleet
        self._upstream = upstream
        self._clock = clock
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._fields = b"authorization: Bearer %b\r\n" % key.encode() if key else b""
        self._watches: dict[FleetMember, asyncio.Task[None]] = {}
        self._checked: dict[FleetMember, asyncio.Event] = {}
        fleet.add_listener(self)

    def added(self, member: FleetMember) -> None:
        """Start checking the member."""
        self._checked[member] = asyncio.Event()
        self._watches[member] = asyncio.create_task(self._watch(member))

    def removed(self, member: FleetMember) -> None:
        """Stop checking the member."""
        self._checked.pop(member).set()
        self._watches.pop(member).cancel()

    async def first_round(self) -> None:
        """Wait until each current member has been checked once."""
        for event in list(self._checked.values()):
            await event.wait()

    async def close(self) -> None:
        """Stop all checks and wait until they have ended."""
        watches = list(self._watches.values())
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    async def _watch(self, member: FleetMember) -> None:
        checked = self._checked[member]
        was = None
        while True:
            await self._check(member)
            checked.set()
            if member.is_draining:
                return
            if member.is_available is not was:
                was = member.is_available
                text = "takes requests" if was else f"takes no requests: {member.reason}"
                _log.info("replica %s %s", member.replica.name, text)
            await asyncio.sleep(self._interval_s)

    async def _check(self, member: FleetMember) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._get(member, "/health")
                cards: Sequence[ModelCard] = ()
                if not member.replica.models:
                    cards = read_cards(await self._get(member, "/v1/models"))
        except TimeoutError:
            self._fleet.mark_unhealthy(member, f"no answer within {self._timeout_s:g} s")
        except OSError as error:
            self._fleet.mark_unhealthy(member, f"unreachable: {_reason(error)}")
        except ValueError as error:
            self._fleet.mark_unhealthy(member, f"invalid response: {error}")
        else:
            self._fleet.mark_healthy(member, cards, self._clock.now_s())

    async def _get(self, member: FleetMember, path: str) -> bytes:
        """Return the body of `path`.

        Raises OSError if the replica is not reached, and ValueError for a status other than 200 or
        a body that is too long.
        """
        exchange = await self._upstream(member.endpoint).send("GET", path, self._fields, None)
        try:
            head = await exchange.begin()
            if head.status != 200:
                raise ValueError(f"{path} returned status {head.status}")
            return await exchange.read(MAX_BYTES)
        finally:
            exchange.close()


def _reason(error: OSError) -> str:
    """Return a short description without the address, which the caller logs anyway."""
    return error.strerror or str(error) or type(error).__name__
