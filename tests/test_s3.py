"""The S3 server that all tests of a run share."""

import pytest

from tests import s3


def test_hook_that_stops_the_shared_server_is_registered(pytestconfig: pytest.Config) -> None:
    hooks = pytestconfig.hook.pytest_unconfigure.get_hookimpls()
    assert any(hook.function is s3.pytest_unconfigure for hook in hooks)


def test_shared_server_is_started_once(
    s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: object) -> None:
        raise AssertionError("a second server was started")

    monkeypatch.setattr(s3, "Weed", fail)
    assert s3.shared_endpoint(tmp_path_factory.getbasetemp()) == s3_endpoint
