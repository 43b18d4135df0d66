"""The gateway's hint: only these endpoints may be picked.

Invariant: a hint that is there and cannot be read allows nobody; only no hint allows all.
"""

from collections.abc import Sequence

from envoy.config.core.v3.base_pb2 import Metadata

from kvtier.router.epp import names


def subset_of(metadata: Metadata) -> Sequence[str] | None:
    """The addresses allowed, a list or one text with commas; None where there is no hint."""
    hint = metadata.filter_metadata.get(names.SUBSET_HINT)
    if hint is None or names.SUBSET not in hint.fields:
        return None
    value = hint.fields[names.SUBSET]
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        texts = value.string_value.split(",")
    elif kind == "list_value":
        texts = [item.string_value for item in value.list_value.values]
    else:
        texts = []
    return tuple(stripped for text in texts if (stripped := text.strip()))
