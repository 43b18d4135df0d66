"""One simulated replica: a queue, one prefill after another, two tiers, all on virtual time.

What is modelled: prompts wait until their KV cache fits, missing tokens are computed at a fixed
rate one prompt after another, tokens of the RAM tier are loaded instead at another rate, all that
have their first token decode together. What is not: the stretch of decoding while others are in
prefill, and chunks of several prompts in one step.
Invariant: what a tier holds of a prompt are its leading segments; the last leave first.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from kvtier.index.fleet.base import DEVICE
from kvtier.router.choose.base import Endpoint, ReplicaLoad, ReplicaTier
from kvtier_bench.router.simtrace import Segment, SessionTurn

RAM: Final = "ram"


class Rates(NamedTuple):
    """Of every replica. An 8B model on one accelerator, roughly."""

    device_tokens: int = 150_000
    ram_tokens: int = 650_000
    prefill_tokens_per_s: float = 10_000.0
    load_tokens_per_s: float = 150_000.0
    step_s: float = 0.015
    """One token for everybody that decodes."""
    chunk_tokens: int = 2048
    """Of prefill that go with one step."""


class Holding:
    """Segments in one tier, the least recently used first; a size for each."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: OrderedDict[Segment, int] = OrderedDict()
        self._used = 0

    def prefix(self, turn: SessionTurn) -> int:
        """Leading tokens of the prompt that are held."""
        total = 0
        for name, size in zip(turn.segments, turn.sizes, strict=True):
            held = self._held.get(name, 0)
            total += min(held, size)
            if held < size:
                break
        return total

    def hold(self, turn: SessionTurn, sizes: Sequence[int]) -> None:
        """All of the prompt, the end of it least recently used."""
        for name, size in zip(reversed(turn.segments), reversed(sizes), strict=True):
            known = self._held.pop(name, 0)
            self._held[name] = max(known, size)
            self._used += max(0, size - known)
        self.shrink(0)

    def shrink(self, taken: int) -> None:
        """Down to what `taken` tokens of the capacity leave."""
        while self._held and self._used + taken > self._capacity:
            self._used -= self._held.popitem(last=False)[1]


class Job(NamedTuple):
    """A request at a replica."""

    session: int
    turn: SessionTurn
    sent_s: float
    expected_tokens: int
    """That were expected to be missing when it was sent."""

    @property
    def tokens(self) -> int:
        """That it takes of the device while it runs."""
        return self.turn.tokens + self.turn.answer_tokens


class Started(NamedTuple):
    """A prefill that has begun."""

    job: Job
    first_s: float
    """When its first token is there."""
    done_s: float
    device_tokens: int
    ram_tokens: int
    """Found in the two tiers; in RAM, those that the device did not have."""


class SimulatedReplica:
    """What is true of it; `endpoint` is what the router knows."""

    def __init__(self, name: str, rates: Rates) -> None:
        self.rates = rates
        self.device = Holding(rates.device_tokens)
        self.ram = Holding(rates.ram_tokens)
        self.waiting: deque[Job] = deque()
        self.prefilling = False
        self.running = 0
        self._taken = 0
        self.endpoint = Endpoint(
            name=name, address=f"{name}:8000", models=frozenset("m"), pending_tokens=0
        )
        self.report(0.0)

    def report(self, now_s: float) -> None:
        """As a scrape of its metrics finds it."""
        rates = self.rates
        tiers = {
            DEVICE: ReplicaTier(capacity_tokens=rates.device_tokens),
            RAM: ReplicaTier(
                capacity_tokens=rates.ram_tokens, load_tokens_per_s=rates.load_tokens_per_s
            ),
        }
        self.endpoint.load = ReplicaLoad(
            waiting=len(self.waiting),
            running=self.running,
            kv_usage=min(1.0, self._taken / rates.device_tokens),
            block_tokens=16,
            tiers=tiers,
            prefill_tokens_per_s=rates.prefill_tokens_per_s,
            updated_s=now_s,
        )

    def start(self, now_s: float) -> Started | None:
        """The next prefill, where there is one, nothing else is in prefill, and it fits."""
        if self.prefilling or not self.waiting:
            return None
        job = self.waiting[0]
        if self.running and self._taken + job.tokens > self.rates.device_tokens:
            return None
        self.waiting.popleft()
        on_device = self.device.prefix(job.turn)
        from_ram = max(0, self.ram.prefix(job.turn) - on_device)
        missing = job.turn.tokens - on_device - from_ram
        rates = self.rates
        seconds = from_ram / rates.load_tokens_per_s + missing / rates.prefill_tokens_per_s
        seconds += rates.step_s * (1 + missing // rates.chunk_tokens)
        first_s = now_s + seconds
        self.prefilling = True
        self.running += 1
        self._taken += job.tokens
        self.device.shrink(self._taken)
        done_s = first_s + job.turn.answer_tokens * rates.step_s
        return Started(job, first_s, done_s, on_device, from_ram)

    def finish(self, job: Job) -> None:
        """It has its answer; its prompt and answer are held from now on."""
        self.running -= 1
        self._taken -= job.tokens
        turn = job.turn
        sizes = [*turn.sizes[:-1], turn.sizes[-1] + turn.answer_tokens]
        self.device.hold(turn, sizes)
        self.ram.hold(turn, sizes)
        self.device.shrink(self._taken)
