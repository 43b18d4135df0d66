"""The picker's ports over real gRPC, used as a gateway does."""

import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from kvtier.errors import InvalidSettings
from kvtier.router.epp.health import HealthService
from kvtier.router.epp.metering import PickerMeter
from kvtier.router.epp.process import PickerServer
from kvtier.router.epp.service import ExtProcService, StreamOptions
from tests.router.epp.fleets import ADDRESSES
from tests.router.epp.gateways import DUPLEX, Failing, Gateway, Slow, run
from tests.router.epp.protocol import destination, echoed, request_body, request_headers


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_request_is_answered_and_stream_closed(secure: bool) -> None:
    async def test(gateway: Gateway) -> None:
        answers = await gateway.exchange(
            request_headers(**DUPLEX), request_body(b'{"model": "m"}'), ends=False
        )
        assert destination(answers[0]) == ",".join(ADDRESSES[:3])
        assert echoed(answers) == b'{"model": "m"}'
        await gateway.settled()

    run(test, secure=secure)


def test_failing_picking_gets_500_and_slow_picking_408() -> None:
    async def bug(gateway: Gateway) -> None:
        (answer,) = await gateway.exchange(request_headers(ends=True, **DUPLEX), ends=False)
        assert answer.immediate_response.status.code == 500
        assert b"a bug" not in answer.immediate_response.body

    async def slow(gateway: Gateway) -> None:
        for messages in (
            [request_headers(ends=True, **DUPLEX)],
            [request_headers(**DUPLEX)],
        ):
            (answer,) = await gateway.exchange(*messages, ends=False)
            assert answer.immediate_response.status.code == 408

    run(bug, picking=Failing())
    run(slow, StreamOptions(request_timeout_s=0.05), Slow())


def test_health_is_served_on_gateway_port() -> None:
    async def test(gateway: Gateway) -> None:
        request = health_pb2.HealthCheckRequest(
            service="envoy.service.ext_proc.v3.ExternalProcessor"
        )
        answer = await HealthStub(gateway.channel).Check(request)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    run(test)


def test_taken_port_raises_invalid_settings() -> None:
    async def test(gateway: Gateway) -> None:
        server = PickerServer(
            ExtProcService(Failing(), PickerMeter(), StreamOptions(), observer=lambda choice: None),  # type: ignore[arg-type,return-value]
            HealthService(),
        )
        with pytest.raises(InvalidSettings, match=f"127.0.0.1:{gateway.port} cannot be listened"):
            server.bind("127.0.0.1", gateway.port, None)
        await server.stop(0, 0)

    run(test)
