import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.router.learn.prompts import PromptBuilder
from kvtier.router.request.message import RequestBody, encode_fields, first_value, parse_body
from kvtier.router.request.refusals import Refusal


def test_parse_body_reads_model_limits_and_priority() -> None:
    asked = parse_body(
        b'{"model":"m","max_tokens":7,"priority":-2,"messages":[{}]}', "application/json"
    )
    assert (asked.model, asked.max_tokens, asked.priority) == ("m", 7, -2)
    assert parse_body(b'{"model":"m","max_completion_tokens":5,"max_tokens":7}', "").max_tokens == 5
    assert parse_body(b'{"model":"m","max_output_tokens":9}', "").max_tokens == 9


@pytest.mark.parametrize("value", ["true", '"7"', "null", "1e3", "-5", "9999999999", "{}"])
def test_parse_body_ignores_invalid_numbers(value: str) -> None:
    assert parse_body(f'{{"model":"m","max_tokens":{value}}}'.encode(), "").max_tokens in (0, 1)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"mod\\u0065l":"b"}',
        b'{"x":{"model":"a"},"model":"b"}',
        b'{"model":"\\u0062"}',
        b'{"model":"a","x":"\\"model\\":\\"c\\"","mod\\u0065l":"b"}',
    ],
)
def test_parse_body_reads_the_same_as_the_engine(body: bytes) -> None:
    assert parse_body(body, "").model == json.loads(body)["model"] == "b"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is empty"),
        (b" \r\n", "the body is empty"),
        (b"{", "incomplete JSON"),
        (b'{"model":"m","prompt":"he', "incomplete JSON"),
        (b"[]", "cannot be read"),
        (b"null", "cannot be read"),
        (b"{}", "names no model"),
        (b'{"model":null}', "names no model"),
        (b'{"model":""}', "must be a non-empty string"),
        (b'{"model":5}', "must be a non-empty string"),
        (b'{"model":["m"]}', "must be a non-empty string"),
        (b'{"model":"m"} {}', "cannot be read"),
        (b'{"model":"m","x":"\xff"}', "not UTF-8"),
        (b'\xef\xbb\xbf{"model":"m"}', "cannot be read"),
        ('{"model":"m"}'.encode("utf-16"), "cannot be read"),
        (b'{"model":"m","x":' + b"[" * 200_000, "nested too deeply"),
    ],
)
def test_parse_body_refuses_undecodable_bodies(body: bytes, said: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_body(body, "application/json")
    assert caught.value.status == 400
    assert said in str(caught.value)


def form(*models: str) -> bytes:
    parts = [f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{m}\r\n' for m in models]
    audio = '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nRIFF\xff\r\n'
    return "".join([audio, *parts, "--b--\r\n"]).encode("latin-1")


def test_parse_body_reads_the_model_of_a_form() -> None:
    assert parse_body(form("whisper"), "multipart/form-data; boundary=b").model == "whisper"
    assert parse_body(form("whisper"), 'Multipart/Form-Data; boundary="b"').model == "whisper"
    for body, kind in (
        (form(), "multipart/form-data; boundary=b"),
        (form("a", "b"), "multipart/form-data; boundary=b"),
        (form("a"), "multipart/form-data"),
        (form("a"), "multipart/form-data; boundary=other"),
    ):
        with pytest.raises(Refusal):
            parse_body(body, kind)


KEYS = (
    "model",
    "messages",
    "prompt",
    "input",
    "max_tokens",
    "max_completion_tokens",
    "priority",
    "tools",
    "cache_salt",
    "role",
    "content",
    "text",
    "tool_calls",
    "function",
    "arguments",
)
NUMBERS = ("1e999", "-1e999", "9" * 400, "-0", "1e-999", "2147483648", "-9223372036854775809", "01")
WORDS = ("null", "true", '"m"', '""', '"\\ud800"', '"\\u0000"', '"\u00e9"', "NaN", '"[1]"')


def written(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return arrays, and objects in which keys may repeat."""
    rows = st.tuples(st.sampled_from(KEYS), inner).map(lambda row: f'"{row[0]}":{row[1]}')
    return st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]"),
        st.lists(rows, max_size=6).map(lambda items: f"{{{','.join(items)}}}"),
        st.tuples(inner, st.sampled_from([1, 40, 50_000])).map(
            lambda one: "[" * one[1] + one[0] + "]" * one[1]
        ),
    )


VALUES = st.recursive(
    st.sampled_from(NUMBERS + WORDS)
    | st.integers().map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.text(max_size=8).map(json.dumps),
    written,
    max_leaves=12,
)
ROWS = st.tuples(st.sampled_from(KEYS), VALUES) | st.tuples(
    st.sampled_from(["max_tokens", "max_completion_tokens", "priority"]),
    st.sampled_from(NUMBERS + WORDS + ("0.5", "-1")),
)
BODIES = st.one_of(
    written(VALUES),
    st.lists(ROWS, max_size=5).map(
        lambda rows: "".join(['{"model":"m"', *(f',"{key}":{value}' for key, value in rows), "}"])
    ),
)


async def asked(body: bytes, content_type: str) -> RequestBody | None:
    """Parse a body and build its prompt; return None if it is refused."""
    try:
        found = parse_body(body, content_type)
    except Refusal:
        return None
    assert found.model
    assert isinstance(found.model, str)
    assert isinstance(found.max_tokens, int)
    assert 0 <= found.max_tokens < 2**31
    assert abs(found.priority) < 2**31
    prompt = await PromptBuilder().of(found.fields, found.model)
    assert prompt.tokens >= 0
    assert len(prompt.chain(16)) <= prompt.tokens // 16
    return found


@settings(max_examples=400, deadline=None)
@given(BODIES, st.integers(0, 60), st.binary(max_size=3), st.sampled_from([False, False, True]))
def test_arbitrary_json_is_parsed_or_refused(
    text: str, at: int, patch: bytes, is_patched: bool
) -> None:
    body = text.encode("utf-8", "surrogatepass")
    if is_patched:
        body = body[:at] + patch + body[at + len(patch) :]
    found = asyncio.run(asked(body, "application/json"))
    if found is not None:
        assert found.model == json.loads(body)["model"], "the engine reads the same value"


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=12)
    | st.sampled_from(["b", "*=utf-8''%ff", "*0*=a", '"', "\r\nb", "*=b; boundary=b", ""]),
    st.binary(max_size=40) | st.sampled_from([form("m"), form("m", "n"), form("\xff")]),
)
def test_arbitrary_forms_are_parsed_or_refused(boundary: str, body: bytes) -> None:
    asyncio.run(asked(body, f"multipart/form-data; boundary={boundary}"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.text(max_size=20))
def test_arbitrary_bytes_are_parsed_or_refused(body: bytes, content_type: str) -> None:
    asyncio.run(asked(body, content_type))


def test_fields_keep_bytes_and_return_the_first_value() -> None:
    fields = [(b"a", b"\xe4"), (b"b", b"1"), (b"a", b"2")]
    assert first_value(fields, b"a") == "\u00e4"
    assert first_value(fields, b"c") == ""
    assert encode_fields(fields) == b"a: \xe4\r\nb: 1\r\na: 2\r\n"
