"""What the demo found, and the rows that follow from it."""

import msgspec

from kvtier_bench.demo.sizing import Sizes, Speed
from kvtier_bench.rows import Row, Target, measured
from kvtier_bench.runs import RunSummary, disagreements

TIERS = ("ram", "disk", "shared")


class Met(msgspec.Struct, frozen=True, kw_only=True):
    """One request for the prompt with its prefix in one place."""

    ttft_s: float
    served_share: float
    """Share of the prompt's tokens that the place served; 0 where the prompt was computed."""


class Findings(msgspec.Struct, kw_only=True):
    """The measurements and answers of the phases that have run."""

    speed: Speed | None = None
    sizes: Sizes | None = None
    prompt_tokens: int = 0
    met: dict[str, Met] = {}
    """Requests for the prompt by place: `cold` (vLLM alone computes it) and the tiers."""
    texts: dict[str, dict[str, str]] = {}
    """Answers by place and prompt. The tiers' answers are compared with those of `device`."""
    loads: dict[str, RunSummary] = {}
    """The summaries of the loads `alone` and `tiers`, over the same requests."""
    load_requests: int = 0
    load_texts: dict[str, dict[str, str]] = {}
    """The answers of both loads, by prompt."""
    seconds: dict[str, float] = {}
    """Seconds of each phase, including the start of its server."""
    left_out: list[str] = []
    """Names of the phases for which no time was left."""


def findings_rows(findings: Findings) -> list[Row]:
    """Return rows: times to the first token, agreements that must hold, and the counted one."""
    return [*_ttft_rows(findings), *agreement_rows(findings)]


def _ttft_rows(findings: Findings) -> list[Row]:
    cold = findings.met.get("cold")
    return [
        measured(
            f"demo/ttft/{place}",
            met.ttft_s,
            "s",
            reference=None if cold is None or place == "cold" else cold.ttft_s,
            note=_served_text(place, met, findings.prompt_tokens),
        )
        for place, met in findings.met.items()
    ]


def _served_text(place: str, met: Met, tokens: int) -> str:
    if place == "cold":
        return f"{tokens} tokens computed"
    return f"{met.served_share:.0%} of {tokens} tokens served from there"


def agreement_rows(findings: Findings) -> list[Row]:
    """Return how many answers differ. None from RAM, disk or the shared folder may differ.

    With and without kvtier the answers are counted only.
    """
    device = findings.texts.get("device", {})
    rows = [
        measured(
            f"demo/outputs_different/{tier}_against_device",
            disagreements(findings.texts[tier], device),
            "requests",
            target=Target("<=", 0),
            note=f"of {len(findings.texts[tier].keys() & device.keys())}, greedy",
        )
        for tier in TIERS
        if tier in findings.texts
    ]
    if findings.load_texts:
        texts = findings.load_texts["tiers"]
        rows.append(
            measured(
                "demo/outputs_different/kvtier_against_alone",
                disagreements(texts, findings.load_texts["alone"]),
                "requests",
                note=f"of {len(texts)}, greedy; bf16 chunk shapes differ with and without a cache",
            )
        )
    return rows
