"""Whether an engine that is forked serves as one that is started the usual way does.

Both servers run at once, bound to the same core, and answer the same prompts in turn, one
request at a time, so that a busy moment of the machine meets both. Half of the prompts reach
the forked server first. Rows compare time to first token, time per output token and the time
to start; the answers must be the same.
"""

import statistics
from pathlib import Path
from typing import Any

import msgspec

from kvtier_bench.client import CompletionResult, complete
from kvtier_bench.engine import warm_up
from kvtier_bench.progress import Steps
from kvtier_bench.rows import Row, Target, measured
from kvtier_bench.server import Server, ServerSettings
from kvtier_bench.verdict import spread_text
from kvtier_bench.workload import Encode, distinct_prompts

PROMPT_LEN = 1_000
OUTPUT_LEN = 32
DEVICE_BLOCKS = 100
NOT_SLOWER, NOT_FASTER = Target("<=", 1.05), Target(">=", 0.95)


def measure_forked(
    model: Path, encode: Encode, steps: Steps, *, prompts: int, scratch: Path
) -> tuple[list[Row], dict[str, Any]]:
    """Return rows and the requests' times behind them. Raises ServerFailed."""
    settings = ServerSettings(model=model, device_blocks=DEVICE_BLOCKS, log=scratch / "forked.log")
    usual = msgspec.structs.replace(settings, log=scratch / "usual.log", forked=False)
    asked = distinct_prompts(encode, [PROMPT_LEN] * prompts)
    answers: dict[str, list[CompletionResult]] = {"forked": [], "usual": []}
    start_s = {}
    servers = {"forked": Server(settings), "usual": Server(usual)}
    with servers["forked"], servers["usual"]:
        for name, server in servers.items():
            with steps.step(f"starting the {name} server"):
                start_s[name] = server.start(steps.tell)
                warm_up(server, encode)
        with steps.step(f"{prompts} prompts to each"):
            for number, prompt in enumerate(asked):
                steps.tell(f"prompt {number + 1} of {prompts}")
                for name in sorted(servers, reverse=bool(number % 2)):
                    endpoint = servers[name].endpoint
                    answers[name].append(complete(endpoint, prompt, OUTPUT_LEN))
    return forked_rows(start_s, answers), _details(answers)


def forked_rows(start_s: dict[str, float], answers: dict[str, list[CompletionResult]]) -> list[Row]:
    """Compare medians of both servers; the ratio is that of the forked server to the usual one."""
    rows = [
        measured("forked/start", start_s["forked"], "s", reference=start_s["usual"]),
        measured(
            "forked/outputs_different",
            sum(a.text != b.text for a, b in zip(*answers.values(), strict=True)),
            "requests",
            target=Target("<=", 0),
            note=f"of {len(answers['forked'])}",
        ),
    ]
    for name, seconds in (("ttft", _ttft_s), ("time_per_output_token", _token_s)):
        samples = {server: [seconds(each) for each in those] for server, those in answers.items()}
        medians = {server: statistics.median(values) for server, values in samples.items()}
        for bound, target in (("not_slower", NOT_SLOWER), ("not_faster", NOT_FASTER)):
            rows.append(
                measured(
                    f"forked/{name}/{bound}",
                    medians["forked"],
                    "s",
                    reference=medians["usual"],
                    target=target,
                    note=spread_text(samples["forked"]),
                )
            )
    return rows


def _ttft_s(answer: CompletionResult) -> float:
    return answer.ttft_s


def _token_s(answer: CompletionResult) -> float:
    return (answer.e2e_s - answer.ttft_s) / (answer.output_tokens - 1)


def _details(answers: dict[str, list[CompletionResult]]) -> dict[str, Any]:
    return {
        f"{server}/{name}": [round(seconds(each), 5) for each in those]
        for server, those in answers.items()
        for name, seconds in (("ttft", _ttft_s), ("time_per_output_token", _token_s))
    }
