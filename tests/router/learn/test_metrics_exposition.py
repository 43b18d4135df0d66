import math

from hypothesis import given
from hypothesis import strategies as st

from kvtier.router.learn.metrics import Sample, read_samples

TEXT = r"""# HELP vllm:x Something.
# TYPE vllm:x gauge
vllm:x{engine="0",model_name="a \"b\" \\ c\n,}"} 3.0
vllm:x{engine="1"} 4.5 1700000000
vllm:x_total 1e3
plain 7
plain{} 8
other{a="b"} 9
"""


def test_read_samples_returns_values_and_labels_of_names() -> None:
    found = read_samples(TEXT, {"vllm:x", "plain"})
    assert found.of("vllm:x") == [
        Sample({"engine": "0", "model_name": 'a "b" \\ c\n,}'}, 3.0),
        Sample({"engine": "1"}, 4.5),
    ]
    assert found.of("plain") == [Sample({}, 7.0), Sample({}, 8.0)]
    assert found.of("other") == []
    assert found.bad_lines == 0


def test_total_sums_first_name_that_is_present() -> None:
    found = read_samples(TEXT, {"vllm:x", "plain"})
    assert found.total("gone", "vllm:x", "plain") == 7.5
    assert found.total("gone") is None


def test_malformed_samples_are_ignored_and_counted() -> None:
    lines = ["x NaN", "x +Inf", "x", "x ", "x{", 'x{a="b" 3', 'x{a="b} 3', "x{a=b} 3", "x three"]
    found = read_samples("\n".join([*lines, "x 1"]), {"x"})
    assert found.of("x") == [Sample({}, 1.0)]
    # A line that consists of its name alone is not recognized as a sample of that name.
    assert found.bad_lines == len(lines) - 1


@given(st.text(alphabet='x{}="\\,ab \n1.e', max_size=60))
def test_read_samples_never_raises_on_any_text(text) -> None:
    found = read_samples(text, {"x", "", "a"})
    assert found.bad_lines <= text.count("\n") + 1
    assert all(math.isfinite(sample.value) for name in "xa" for sample in found.of(name))


def test_total_that_overflows_is_none() -> None:
    text = "a 1.7e308\na 1.7e308\n"
    assert read_samples(text, {"a"}).total("a") is None
