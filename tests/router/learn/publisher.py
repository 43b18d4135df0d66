"""A publisher of KV events like vLLM's that runs in the test's event loop."""

from collections.abc import Collection

import msgspec
import zmq
import zmq.asyncio

END = (-1).to_bytes(8, "big", signed=True)


class Publisher:
    """A PUB socket and optionally a ROUTER socket for replays of what was sent."""

    def __init__(self, folder, topic: bytes = b"", *, has_replay: bool = False) -> None:
        self.endpoint = f"ipc://{folder}/events"
        self.replay = f"ipc://{folder}/replay" if has_replay else None
        self.topic = topic
        self.sent: list[bytes] = []
        self.asked: list[int] = []
        self.context = zmq.asyncio.Context()
        self.pub = self.context.socket(zmq.PUB)
        self.pub.bind(self.endpoint)
        self.router = None
        if self.replay:
            self.router = self.context.socket(zmq.ROUTER)
            self.router.bind(self.replay)

    async def send(self, *events: dict, ts: float = 1.0, lost: bool = False) -> None:
        payload = msgspec.msgpack.encode([ts + len(self.sent), list(events), 0])
        await self.send_raw(payload, lost=lost)

    async def send_raw(self, payload: bytes, *, lost: bool = False) -> None:
        number = len(self.sent)
        self.sent.append(payload)
        if not lost:
            await self.pub.send_multipart([self.topic, number.to_bytes(8, "big"), payload])

    async def answer(
        self,
        *,
        ends: bool = True,
        begins: int = 0,
        upto: int | None = None,
        leaves_out: Collection[int] = (),
    ) -> None:
        """Serve replays until cancelled."""
        while True:
            client, _, start = await self.router.recv_multipart()
            first = int.from_bytes(start, "big")
            self.asked.append(first)
            for number, payload in enumerate(self.sent[:upto]):
                if number >= max(first, begins) and number not in leaves_out:
                    parts = (client, b"", self.topic, number.to_bytes(8, "big"), payload)
                    await self.router.send_multipart(parts)
            if ends:
                await self.router.send_multipart((client, b"", b"", END, b""))

    def close(self) -> None:
        self.pub.close(0)
        if self.router is not None:
            self.router.close(0)
        self.context.term()


def stored(*names: int, parent: int | None = None, tokens: int = 16) -> dict:
    """Return an event that stores blocks whose tokens all equal the block's name."""
    return {
        "type": "BlockStored",
        "block_hashes": list(names),
        "parent_block_hash": parent,
        "token_ids": [name for name in names for _ in range(tokens)],
        "block_size": tokens,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "group_idx": 0,
    }
