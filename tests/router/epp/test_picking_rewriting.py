import pytest

from kvtier.router.epp.picking import rewrite_model
from kvtier.router.request.refusals import Refusal


def test_all_but_the_model_stays_byte_for_byte() -> None:
    body = b'{"n": 1.50, "model": "alias", "t": "\\u00e9\xc3\xa9", "big": 123456789012345678901234}'
    found = rewrite_model(body, "application/json", 'm"1')
    assert found == (
        b'{"n":1.50,"model":"m\\"1","t":"\\u00e9\xc3\xa9","big":123456789012345678901234}'
    )


def test_a_model_that_was_not_named_is_added() -> None:
    assert rewrite_model(b"{}", "", "m") == b'{"model":"m"}'


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"[]", "cannot be read"), (b"", "empty"), (b"{", "whole"), (b"\xff", "cannot be read")],
)
def test_what_is_no_object_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(Refusal, match=said):
        rewrite_model(body, "application/json", "m")


def test_forms_are_refused() -> None:
    with pytest.raises(Refusal):
        rewrite_model(b"--x", "multipart/form-data; boundary=x", "m")
