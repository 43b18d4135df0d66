"""A real Envoy verifies the name in the picker's certificate."""

import datetime as dt
from typing import Any

import pytest

from kvtier.router.epp import certificates
from tests.e2e.envoy.servers import Stage, ask

BODY = {"model": "m", "prompt": "Once upon a time"}


def unchecked(config: dict[str, Any]) -> None:
    """Remove the health checks, so that an untrusted picker fails requests and not the start."""
    del config["static_resources"]["clusters"][1]["health_checks"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "is_believed"), [("localhost", True), ("else.example", False)])
def test_picker_certificate_for_another_name_is_refused(
    scene: Stage, name: str, is_believed: bool
) -> None:
    pair = certificates.self_signed(dt.datetime.now(dt.UTC))
    certificate, key = scene.file("tls.crt", pair.certificate), scene.file("tls.key", pair.key)
    replicas = [scene.replica()]
    epp, _ = scene.epp(replicas, "--tls-certificate", certificate, "--tls-key", key)
    flags = ("--ca", certificate, "--picker-san", name, "--fail-close")
    port = scene.envoy(epp, replicas, *flags, change=unchecked)
    assert (ask(port, BODY).status == 200) == is_believed
