"""How the picker speaks to gateways: what a person may set of it."""

import msgspec

from kvtier.router.epp.conversation import BodyMode


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Of every stream."""

    body_mode: BodyMode = BodyMode.FULL_DUPLEX
    """Of gateways that do not say how they are configured."""
    max_body_bytes: int = 64 << 20
    max_held_bytes: int = 1 << 30
    """Of all bodies that are being received, chosen for or given back."""
    request_timeout_s: float = 60.0
    """For the whole of a request, its choice, and the answer to it."""
    observes: bool = False
    """Responses, wherever the gateway shows them."""
