import pytest

from kvtier.router.learn.gauges import GaugeNames, parse_name, prepend


def test_gauge_name_selects_series_by_labels() -> None:
    assert parse_name("vllm:num_requests_waiting") == ("vllm:num_requests_waiting", {})
    text = ' nv_trt_llm_request_metrics { request_type=waiting , model="a, b"}'
    with pytest.raises(ValueError, match="not a label"):  # commas separate labels even in quotes
        parse_name(text)
    assert parse_name('x{request_type=waiting, model="a b"}') == (
        "x",
        {"request_type": "waiting", "model": "a b"},
    )


@pytest.mark.parametrize(
    "text",
    ["", "a b", "a{", "a}", "a{}", "a{b}", "a{=b}", "a{b=}", "a{b=c}d", "a{b=c,}", "{a=b}", "1a"],
)
def test_malformed_gauge_name_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="write name"):
        parse_name(text)


def test_prepend_puts_name_first_and_empty_one_disables_gauge() -> None:
    usual = GaugeNames().usage
    assert prepend(None, usual) == usual
    assert prepend("mine{a=b}", usual) == ("mine{a=b}", *usual)
    assert prepend("", usual) == ()
    given = prepend('"sglang:token_usage"', usual)
    assert given[0] == "sglang:token_usage"
    assert sorted(given) == sorted(usual)
    with pytest.raises(ValueError, match="not a metric"):
        prepend("a b", usual)
