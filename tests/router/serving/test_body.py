import json

import pytest

from kvtier.router.serving.body import look
from kvtier.router.serving.refusals import Refusal


def test_what_choosing_needs_is_read() -> None:
    asked = look(b'{"model":"m","max_tokens":7,"priority":-2,"messages":[{}]}', "application/json")
    assert (asked.model, asked.max_tokens, asked.priority) == ("m", 7, -2)
    assert look(b'{"model":"m","max_completion_tokens":5,"max_tokens":7}', "").max_tokens == 5
    assert look(b'{"model":"m","max_output_tokens":9}', "").max_tokens == 9


@pytest.mark.parametrize("value", ["true", '"7"', "null", "1e3", "-5", "9999999999", "{}"])
def test_numbers_that_are_none_are_left_to_the_engine(value: str) -> None:
    assert look(f'{{"model":"m","max_tokens":{value}}}'.encode(), "").max_tokens in (0, 1)


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
def test_a_body_is_read_as_the_engine_will_read_it(body: bytes) -> None:
    assert look(body, "").model == json.loads(body)["model"] == "b"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"null", "cannot be read"),
        (b"{}", "names no model"),
        (b'{"model":null}', "names no model"),
        (b'{"model":""}', "has to be a name"),
        (b'{"model":5}', "has to be a name"),
        (b'{"model":["m"]}', "has to be a name"),
        (b'{"model":"m"} {}', "cannot be read"),
        (b'{"model":"m","x":"\xff"}', "not UTF-8: invalid start byte"),
        (b'\xef\xbb\xbf{"model":"m"}', "cannot be read"),
        ('{"model":"m"}'.encode("utf-16"), "cannot be read"),
        (b'{"model":"m","x":' + b"[" * 200_000, "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(Refusal) as caught:
        look(body, "application/json")
    assert caught.value.status == 400
    assert said in str(caught.value)


def form(*models: str) -> bytes:
    parts = [f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{m}\r\n' for m in models]
    audio = '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nRIFF\xff\r\n'
    return "".join([audio, *parts, "--b--\r\n"]).encode("latin-1")


def test_a_form_names_its_model_once() -> None:
    assert look(form("whisper"), "multipart/form-data; boundary=b").model == "whisper"
    assert look(form("whisper"), 'Multipart/Form-Data; boundary="b"').model == "whisper"
    for body, kind in (
        (form(), "multipart/form-data; boundary=b"),
        (form("a", "b"), "multipart/form-data; boundary=b"),
        (form("a"), "multipart/form-data"),
        (form("a"), "multipart/form-data; boundary=other"),
    ):
        with pytest.raises(Refusal):
            look(body, kind)
