"""The picker on its ports: ext_proc and health for gateways, health alone for Kubernetes.

Each stream is an `exchange.Exchange`; here is what they share.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Final

from kvtier.clock import Clock, MonotonicClock
from kvtier.router.epp.conversation import Asked
from kvtier.router.epp.exchange import Exchange
from kvtier.router.epp.h2.bounds import Allowance, Limits
from kvtier.router.epp.h2.calls import Call
from kvtier.router.epp.h2.listener import Listener
from kvtier.router.epp.health import Health
from kvtier.router.epp.metering import Meter
from kvtier.router.epp.observing import Stay
from kvtier.router.epp.options import Options
from kvtier.router.epp.picking import Choice, Dropped, Picking, Reason
from kvtier.router.request.refusals import Refusal

_log = logging.getLogger(__name__)

PROCESS: Final = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process"
_MESSAGE_ROOM_BYTES: Final = 1 << 20
"""Of a message, for what is around a buffered body."""
_PROBE_BYTES: Final = 1 << 16


class Picker:
    """Meets exchange.Desk. Belongs to the event loop's thread."""

    def __init__(
        self,
        picking: Picking,
        meter: Meter,
        options: Options,
        *,
        observer: Callable[[Choice], Stay],
        clock: Clock | None = None,
    ) -> None:
        """`observer` is called for requests whose response is followed."""
        self._picking = picking
        self.meter = meter
        self.options = options
        self.observer = observer
        self.clock = clock or MonotonicClock()
        self.held = Allowance(options.max_held_bytes)

    def process(self, call: Call) -> Exchange:
        """A gateway has begun a stream."""
        return Exchange(self, call)

    async def choose(self, asked: Asked) -> Choice:
        """See Desk."""
        since_s = self.clock.now_s()
        try:
            choice = await self._picking.choose(asked)
        except Dropped:
            raise
        except Exception as error:
            # A gateway in full duplex has sent the body and cannot fail open any more.
            _log.exception("choosing failed")
            refusal = Refusal(
                500, "the endpoint picker failed", kind="internal_error", code="internal_error"
            )
            raise Dropped(refusal, Reason.FAILED) from error
        self.meter.chosen(self.clock.now_s() - since_s)
        return choice


class Server:
    """The picker and its health on ports. `bind` and `bind_probes`, `start`, then `stop`."""

    def __init__(self, picker: Picker, health: Health) -> None:
        most = picker.options.max_body_bytes + _MESSAGE_ROOM_BYTES
        self.health = health
        self._server = Listener(
            {PROCESS: picker.process, **health.services},
            Limits(max_message_bytes=most),
            picker.held,
            on_broken=picker.meter.broke,
        )
        self._probes = Listener(
            health.services,
            Limits(max_message_bytes=_PROBE_BYTES, max_streams=100),
            Allowance(_PROBE_BYTES),
        )

    def bind(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Where gateways ask; without TLS in plain text. Returns the port."""
        return self._server.bind(host, port, tls)

    def bind_probes(self, host: str, port: int) -> int:
        """Where Kubernetes asks for health, in plain text. Returns the port."""
        return self._probes.bind(host, port, None)

    async def start(self) -> None:
        """Answer."""
        await self._server.start()
        await self._probes.start()

    async def stop(self, drain_s: float, grace_s: float) -> None:
        """Say not serving, answer for `drain_s` more, then let streams end within `grace_s`."""
        self.health.stop()
        await asyncio.sleep(drain_s)
        await self._server.stop(grace_s)
        await self._probes.stop(0)
