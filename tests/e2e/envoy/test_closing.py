"""Closing a stream together with the answer loses no response.

A gateway whose responses are in full duplex forgets each chunk that it has sent to the picker. The
replica here answers at once, so that Envoy has a chunk to send before a separate write could have
told it that the stream is closed.
"""

import asyncio
import json
import sys
from collections import Counter
from typing import Any

import pytest

from tests.e2e.envoy.quick import BODY
from tests.e2e.envoy.servers import HERE, PATIENCE_S, Stage, answers, ask, free_ports, wait_for

CLIENTS = 16
EACH = 25
"""Requests per client."""
SMALL, NEARLY, LARGE = 100, 15_000, 300_000
"""Body sizes: with the second, the answer just fits into one piece; with the third it does not."""
FOLLOWED = "kvtier_epp_first_chunk_seconds_count "


def show(config: dict[str, Any]) -> None:
    (listener,) = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    shown = manager["http_filters"][0]["typed_config"]["processing_mode"]
    shown["response_header_mode"] = "SEND"
    shown["response_body_mode"] = "FULL_DUPLEX_STREAMED"
    shown["response_trailer_mode"] = "SEND"


async def talk(port: int, path: str, size: int, count: int) -> Counter[tuple[int, int]]:
    """Send requests over a kept connection; count the statuses and lengths of the answers."""
    found: Counter[tuple[int, int]] = Counter()
    body = json.dumps({"model": "m", "prompt": "x", "noise": "y" * size}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n"
    question = head.encode() + b"content-type: application/json\r\n\r\n" + body
    writer = None
    for _ in range(count):
        if writer is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(question)
        status, length, stays = await answer(reader)
        found[status, length] += 1
        if not stays:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    return found


async def answer(reader: asyncio.StreamReader) -> tuple[int, int, bool]:
    """Read an answer; return its status, its body's length, and whether the connection is kept."""
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status, stays = int(head.split()[1]), b"connection: close" not in head
        if b"content-length:" in head:
            length = int(head.partition(b"content-length:")[2].split()[0])
            return status, len(await reader.readexactly(length)), stays
        total = 0
        while size := int(await reader.readline(), 16):
            total += size
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
        return status, total, stays


async def crowd(port: int, path: str, size: int, count: int) -> Counter[tuple[int, int]]:
    told = await asyncio.gather(*(talk(port, path, size, count) for _ in range(CLIENTS)))
    return sum(told, Counter())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--insecure",), ()], ids=["plain", "tls"])
def test_immediate_responses_are_complete(scene: Stage, flags: tuple[str, ...]) -> None:
    (port,) = free_ports(1)
    scene.start("quick", [sys.executable, str(HERE / "quick.py"), str(port)])
    wait_for("the replica", lambda: answers(port))
    address = f"127.0.0.1:{port}"
    epp, metrics = scene.epp([address], *flags)
    envoy = scene.envoy(epp, [address], "--health-path", "", *flags, change=show)

    def followed() -> float:
        text = ask(metrics, method="GET", path="/metrics").body.decode()
        (line,) = [one for one in text.splitlines() if one.startswith(FOLLOWED)]
        return float(line.rpartition(" ")[2])

    for path, status in (("/v1/completions", 200), ("/early", 404)):
        for size in (SMALL, NEARLY):
            told = asyncio.run(crowd(envoy, path, size, EACH))
            assert told == {(status, len(BODY)): CLIENTS * EACH}
    assert followed() == 0, "every stream was closed with the answer"
    # A larger answer is followed, and is complete as well.
    told = asyncio.run(crowd(envoy, "/early", LARGE, 3))
    assert told == {(404, len(BODY)): CLIENTS * 3}
    # The count changes when the gateway ends the stream, possibly after the client's answer.
    wait_for("the streams' ends", lambda: followed() >= CLIENTS * 3)
    assert followed() == CLIENTS * 3
