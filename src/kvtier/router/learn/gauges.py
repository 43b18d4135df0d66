"""The path of a replica's metrics and the names of its three load gauges.

Each engine has names of its own. For other engines they are given by flag, with the syntax of the
Gateway API Inference Extension: `name`, or `name{label=value}` for one series. Invariant: the first
name that a replica exposes is used, so no label needs to name a replica's engine.
"""

import re
from typing import Final

import msgspec

_NAME = r"[A-Za-z_:][A-Za-z0-9_:]*"
_SELECTOR: Final = re.compile(rf"\s*({_NAME})\s*(?:\{{([^{{}}]*)\}})?\s*")
_LABEL: Final = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?:"([^"]+)"|([^",\s][^",]*?))\s*')


class GaugeNames(msgspec.Struct, frozen=True):
    """The gauge names to look for, by default those of vLLM, SGLang, TensorRT-LLM and Triton."""

    waiting: tuple[str, ...] = (
        "vllm:num_requests_waiting",
        "sglang:num_queue_reqs",
        "trtllm_num_requests_waiting",
        "nv_trt_llm_request_metrics{request_type=waiting}",
    )
    running: tuple[str, ...] = (
        "vllm:num_requests_running",
        "sglang:num_running_reqs",
        "trtllm_num_requests_running",
        "nv_trt_llm_request_metrics{request_type=scheduled}",
    )
    usage: tuple[str, ...] = (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "sglang:token_usage",
        "trtllm_kv_cache_utilization",
        "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}",
    )
    path: str = "/metrics"


def parse_name(text: str) -> tuple[str, dict[str, str]]:
    """Return the name and labels of `name{label=value,...}`. Raises ValueError."""
    found = _SELECTOR.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a metric; write name, or name{{label=value}}")
    labels = {}
    for part in found[2].split(",") if found[2] is not None else ():
        label = _LABEL.fullmatch(part)
        if label is None:
            raise ValueError(f"{text!r}: {part!r} is not a label; write name{{label=value}}")
        labels[label[1]] = label[2] or label[3]
    return found[1], labels


def prepend(text: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    """Return the name in `text` followed by the `usual` ones, which replicas of other engines use.

    None returns the usual names; an empty text returns none, so that the gauge is not read. Raises
    ValueError if the name is malformed.
    """
    if text is None:
        return usual
    bare = text.strip().strip('"')
    if not bare:
        return ()
    parse_name(bare)
    return (bare, *(name for name in usual if name != bare))
