"""Another model's name in a body, everything else as the client wrote it.

Why: a gateway that splits traffic between versions of a model names the version in a header.
Invariant: the values of all other keys stay byte for byte what they were.
"""

import msgspec

from kvtier.router.request.message import unreadable
from kvtier.router.request.refusals import invalid

_read = msgspec.json.Decoder(dict[str, msgspec.Raw])


def rewrite_model(body: bytes, content_type: str, model: str) -> bytes:
    """The body, asking for `model`. Raises Refusal (400) where it is no JSON object."""
    if content_type.lower().startswith("multipart/"):
        raise invalid("the model of a form cannot be exchanged by the gateway")
    try:
        fields = _read.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise unreadable(body, error) from error
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)
