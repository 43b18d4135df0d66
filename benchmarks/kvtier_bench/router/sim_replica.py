"""A simulated replica in virtual time: a queue, one prefill at a time, and two tiers.

Modeled: prompts wait until their KV cache fits; missing tokens are computed at a fixed rate, one
prompt after another; tokens found in RAM are loaded at another rate; all requests that have their
first token decode together. Not modeled: the slowdown of decoding during prefills, and steps with
chunks of several prompts.

Invariant: a tier has leading segments of a prompt; the last segments are evicted first.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from kvtier.index.fleet.base import DEVICE
from kvtier.router.choose.base import Endpoint, ReplicaLoad, ReplicaTier
from kvtier_bench.router.sim_trace import Segment, SessionTurn

RAM: Final = "ram"


class Rates(NamedTuple):
    """Sizes and speeds of a replica, roughly those of an 8B model on one accelerator."""

    device_tokens: int = 150_000
    ram_tokens: int = 650_000
    prefill_tokens_per_s: float = 10_000.0
    load_tokens_per_s: float = 150_000.0
    step_s: float = 0.015
    """Time of one step, which decodes one token of every running request."""
    chunk_tokens: int = 2048
    """Prefill tokens in one step."""


class TierContent:
    """The segments in one tier and their sizes, least recently used first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: OrderedDict[Segment, int] = OrderedDict()
        self._used = 0

    def prefix(self, turn: SessionTurn) -> int:
        """Return how many leading tokens of the prompt the tier has."""
        total = 0
        for name, size in zip(turn.segments, turn.sizes, strict=True):
            held = self._held.get(name, 0)
            total += min(held, size)
            if held < size:
                break
        return total

    def add(self, turn: SessionTurn, sizes: Sequence[int]) -> None:
        """Add the whole prompt, its end least recently used, and evict segments to make room."""
        for name, size in zip(reversed(turn.segments), reversed(sizes), strict=True):
            known = self._held.pop(name, 0)
            self._held[name] = max(known, size)
            self._used += max(0, size - known)
        self.shrink(0)

    def shrink(self, taken: int) -> None:
        """Evict until the segments and `taken` further tokens fit into the capacity."""
        while self._held and self._used + taken > self._capacity:
            self._used -= self._held.popitem(last=False)[1]


class Job(NamedTuple):
    """A request that a replica is to serve."""

    session: int
    turn: SessionTurn
    sent_s: float
    expected_tokens: int
    """The missing tokens that the router expected when it sent the request."""

    @property
    def tokens(self) -> int:
        """The tokens that it occupies on the device while it runs."""
        return self.turn.tokens + self.turn.answer_tokens


class Started(NamedTuple):
    """A prefill that has started."""

    job: Job
    first_s: float
    """The time of its first token."""
    done_s: float
    """The time of its last token."""
    device_tokens: int
    """Prompt tokens found on the device."""
    ram_tokens: int
    """Prompt tokens found in RAM and not on the device."""


class SimulatedReplica:
    """The true state of a replica; `endpoint` is what the router knows."""

    def __init__(self, name: str, rates: Rates) -> None:
        self.rates = rates
        self.device = TierContent(rates.device_tokens)
        self.ram = TierContent(rates.ram_tokens)
        self.waiting: deque[Job] = deque()
        self.prefilling = False
        self.running = 0
        self._taken = 0
        self.endpoint = Endpoint(
            name=name, address=f"{name}:8000", models=frozenset("m"), pending_tokens=0
        )
        self.report(0.0)

    def report(self, now_s: float) -> None:
        """Update the endpoint's load, as a scrape of the replica's metrics does."""
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
        """Start the next prefill; None if none waits, another one runs, or it does not fit."""
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
        """Complete a request, and add its prompt and answer to both tiers."""
        self.running -= 1
        self._taken -= job.tokens
        turn = job.turn
        sizes = [*turn.sizes[:-1], turn.sizes[-1] + turn.answer_tokens]
        self.device.add(turn, sizes)
        self.ram.add(turn, sizes)
        self.device.shrink(self._taken)
