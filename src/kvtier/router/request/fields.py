"""Header fields as they cross the data path: pairs of bytes, names in lower case, in order.

Why not a mapping of text: each field is looked at once and passed on, and bytes of another
encoding than ours must arrive as they were. HTTP's parser lets no line break through, so a pair
can be written as it is.
"""

Fields = list[tuple[bytes, bytes]]


def text(fields: Fields, name: bytes) -> str:
    """The first value of that name; empty where there is none."""
    for known, value in fields:
        if known == name:
            return value.decode("latin-1")
    return ""


def block(fields: Fields) -> bytes:
    """As lines of a message's head."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])
