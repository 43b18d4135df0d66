import asyncio
from collections.abc import Sequence

import pytest

from kvtier.router.choose.base import Endpoint
from kvtier.router.epp import messages
from kvtier.router.epp.conversation import GatewayRequest
from kvtier.router.epp.picking import (
    DropReason,
    FleetPicking,
    PickingOptions,
    Placement,
    RequestDropped,
    rewrite_model,
)
from kvtier.router.fleet.members import Fleet
from kvtier.router.request.refusals import Refusal
from tests.router.epp.fleets import ADDRESSES, Characters, First, asked, fleet_of


def picking(
    fleet: Fleet | None = None,
    chooser: First | None = None,
    *,
    saturation: float | None = None,
    **options: object,
) -> FleetPicking:
    def measured(endpoints: Sequence[Endpoint], now_s: float) -> float:
        assert endpoints
        return saturation or 0.0

    return FleetPicking(
        fleet or fleet_of(),
        chooser or First(),
        Characters(),
        PickingOptions(**options),  # type: ignore[arg-type]
        saturation=None if saturation is None else measured,
    )


def choose(one: FleetPicking, request: GatewayRequest) -> Placement:
    return asyncio.run(one.choose(request))


def dropped(one: FleetPicking, request: GatewayRequest) -> tuple[int, DropReason]:
    with pytest.raises(RequestDropped) as found:
        choose(one, request)
    return found.value.refusal.status, found.value.reason


def test_profile_chooses_and_fallbacks_follow_by_load() -> None:
    chooser = First()
    choice = choose(picking(chooser=chooser), asked())
    assert list(choice.addresses) == list(ADDRESSES[:3])
    assert chooser.routed_to == [ADDRESSES[0]]
    assert chooser.requests[0].max_tokens == 5
    assert choice.tokens == chooser.requests[0].prompt.tokens + 5
    assert choice.missing_tokens == chooser.requests[0].prompt.tokens
    assert choice.response_headers == {"x-session-token": ADDRESSES[0]}


def test_profiles_order_precedes_load() -> None:
    choice = choose(picking(chooser=First(keeps=4), fallbacks=1), asked())
    assert list(choice.addresses) == list(ADDRESSES[:2])
    assert list(choose(picking(fallbacks=0), asked()).addresses) == [ADDRESSES[0]]


def test_subset_hint_limits_choice_and_fallbacks() -> None:
    choice = choose(picking(), asked(subset=(ADDRESSES[3], ADDRESSES[1], "10.9.9.9:1")))
    assert list(choice.addresses) == [ADDRESSES[1], ADDRESSES[3]]
    for subset in ((), ("10.9.9.9:1",)):
        assert dropped(picking(), asked(subset=subset)) == (503, DropReason.NO_ENDPOINTS)
        anything = asked(b"", subset=subset)
        assert dropped(picking(), anything) == (503, DropReason.NO_ENDPOINTS)


def test_filtered_endpoint_is_no_fallback() -> None:
    chooser = First(removes=(ADDRESSES[0], ADDRESSES[2]))
    choice = choose(picking(chooser=chooser, fallbacks=3), asked())
    assert list(choice.addresses) == [ADDRESSES[1], ADDRESSES[3]]
    hint = asked(subset=(ADDRESSES[0], ADDRESSES[3]))
    assert list(choose(picking(chooser=chooser), hint).addresses) == [ADDRESSES[3]]


def test_test_selection_needs_option() -> None:
    wish = asked(headers={messages.TEST_SELECTION: "fd00::1, 10.0.0.2:8000,10.7.7.7"})
    chooser = First()
    choice = choose(picking(takes_test_selection=True, chooser=chooser), wish)
    assert list(choice.addresses) == [ADDRESSES[3], ADDRESSES[1]]
    assert chooser.routed_to == [], "a test's selection does not change the indexes"
    assert choose(picking(), wish).addresses[0] == ADDRESSES[0]
    foreign = asked(headers={messages.TEST_SELECTION: "10.7.7.7"})
    assert dropped(picking(takes_test_selection=True), foreign) == (503, DropReason.NO_ENDPOINTS)


def test_request_without_model_goes_anywhere_and_changes_no_index() -> None:
    chooser = First()
    one = picking(chooser=chooser)
    seen = set()
    for _ in range(60):
        for request in (
            asked(b""),
            asked(headers={":method": "GET", ":path": "/metrics"}),
            asked(headers={":path": "/something/else"}),
            asked(is_whole=False),
        ):
            addresses = choose(one, request).addresses
            assert len(set(addresses)) == 3
            seen.add(addresses[0])
    assert seen == set(ADDRESSES)
    assert chooser.requests == chooser.routed_to == []


def test_fleet_without_endpoints_gets_503() -> None:
    empty = picking(fleet_of(()))
    assert dropped(empty, asked()) == (503, DropReason.NO_ENDPOINTS)
    assert dropped(empty, asked(b"")) == (503, DropReason.NO_ENDPOINTS)
    fleet = fleet_of()
    for member in fleet.members:
        for _ in range(3):
            fleet.mark_unhealthy(member, "gone")
    assert dropped(picking(fleet), asked()) == (503, DropReason.NO_ENDPOINTS)


def test_filters_that_remove_every_endpoint_get_503() -> None:
    assert dropped(picking(chooser=First(keeps=0)), asked()) == (503, DropReason.NO_ENDPOINTS)


def test_invalid_requests_are_refused() -> None:
    for body, status in ((b"{", 400), (b"{}", 400), (b'{"model": "other"}', 404)):
        assert dropped(picking(), asked(body)) == (status, DropReason.INVALID)


def test_saturation_sheds_only_low_priorities() -> None:
    batch = asked(headers={"x-llm-d-inference-objective": "batch"})
    objectives = {"batch": -1}
    full = picking(saturation=1.0, objectives=objectives)
    assert dropped(full, batch) == (429, DropReason.SATURATED)
    assert choose(full, asked()).addresses
    assert choose(picking(saturation=0.9, objectives=objectives), batch).addresses
    assert choose(picking(objectives=objectives), batch).addresses
    everybody = picking(saturation=1.0, sheds_below=1)
    assert dropped(everybody, asked()) == (429, DropReason.SATURATED)


def test_model_rewrite_header_replaces_model() -> None:
    rewrite = {"x-gateway-model-name-rewrite": "m"}
    choice = choose(picking(), asked(b'{"model":"alias"}', headers=rewrite))
    assert choice.body == b'{"model":"m"}'
    assert dropped(picking(), asked(b'{"model":"alias"}')) == (404, DropReason.INVALID)


def test_endpoint_removed_while_prompt_is_read_is_not_named() -> None:
    fleet = fleet_of(ADDRESSES[:2])
    prompts = Characters()

    async def remove_first(_: float) -> None:
        fleet.update([one.replica for one in fleet.members if one.replica.name != ADDRESSES[0]])

    prompts.wait = remove_first  # type: ignore[assignment]
    one = FleetPicking(fleet, First(), prompts, PickingOptions())
    assert list(choose(one, asked()).addresses) == [ADDRESSES[1]]


def test_rewrite_model_keeps_other_values_byte_for_byte() -> None:
    body = b'{"n": 1.50, "model": "alias", "t": "\\u00e9\xc3\xa9", "big": 123456789012345678901234}'
    found = rewrite_model(body, "application/json", 'm"1')
    assert found == (
        b'{"n":1.50,"model":"m\\"1","t":"\\u00e9\xc3\xa9","big":123456789012345678901234}'
    )


def test_rewrite_model_adds_missing_model() -> None:
    assert rewrite_model(b"{}", "", "m") == b'{"model":"m"}'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[]", "cannot be read"),
        (b"", "empty"),
        (b"{", "incomplete JSON"),
        (b"\xff", "cannot be read"),
    ],
)
def test_rewrite_model_refuses_invalid_json_object(body: bytes, said: str) -> None:
    with pytest.raises(Refusal, match=said):
        rewrite_model(body, "application/json", "m")


def test_rewrite_model_refuses_multipart_form() -> None:
    with pytest.raises(Refusal):
        rewrite_model(b"--x", "multipart/form-data; boundary=x", "m")
