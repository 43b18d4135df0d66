import msgspec
import pytest

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.prompt import Unit, UnreadPrompt
from kvtier.router.choose.record import DecisionRecord, record
from kvtier.router.config.profiles import build_profiles
from kvtier.router.config.profiles import strategies_configuration as strategies
from kvtier.router.config.reading import parse_configuration, read_configuration
from kvtier.router.replay import LoggedIndex, ReplayReport, explained, replay, text
from tests.router.cases import FakeIndex, endpoint, request

QUEUE = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: expected-ttft-scorer
schedulingProfiles:
- name: default
  plugins: [{pluginRef: queue-scorer}]
- name: sooner
  plugins: [{pluginRef: expected-ttft-scorer}]
"""


def logged(count: int = 3) -> list[DecisionRecord]:
    """Return decisions by the queue alone, under which the holder with its queue is not chosen."""
    holds = {"holder": {"ram": 15_000}, "idle": {"device": 160}}
    indexes = {"prefix": FakeIndex(holds)}
    profile = build_profiles(parse_configuration(QUEUE, "f"), indexes, keeps_matches=True)[
        "default"
    ]
    records = []
    for place in range(count):
        fleet = [endpoint("holder", waiting=1, in_flight=1, in_flight_tokens=100), endpoint("idle")]
        asked = request(16_000, request_id=f"r{place}")
        records.append(record(profile.decide(asked, fleet, float(place))))
    return records


def test_replay_under_the_same_profile_has_no_differences() -> None:
    done = replay(logged(), parse_configuration(QUEUE, "f"))
    assert (done.requests, done.same, done.differences) == (3, 3, ())


def test_replay_under_another_profile_reports_differences() -> None:
    done = replay(logged(), read_configuration(None))
    assert (done.requests, done.same) == (3, 0)
    assert (done.prompt_tokens, done.held_was, done.held_now) == (48_000, 480, 45_000)
    one = done.differences[0]
    assert (one.request_id, one.was, one.now) == ("r0", "idle", "holder")
    assert (one.held_was, one.held_now) == (160, 15_000)
    assert one.why.scorers == (("expected-ttft-scorer", 1.0),)


def test_replay_selects_a_profile_by_name() -> None:
    configuration = parse_configuration(QUEUE, "f")
    assert replay(logged(), configuration, "sooner").same == 0
    with pytest.raises(
        InvalidSettings, match="no profile or strategy 'soner'; did you mean 'sooner'"
    ):
        replay(logged(), configuration, "soner")


def test_logged_index_of_unknown_name_returns_the_longest_logged_match() -> None:
    old = parse_configuration(
        "apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig\n"
        "plugins:\n- {type: prefix-cache-scorer, name: cpu-scorer}\n"
        "schedulingProfiles:\n- {name: default, plugins: [{pluginRef: cpu-scorer}]}\n",
        "f",
    )
    assert {one.now for one in replay(logged(), old).differences} == {"holder"}


def test_plugins_learn_from_replayed_decisions() -> None:
    turns = parse_configuration(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        "plugins:\n- type: round-robin-picker\n"
        "schedulingProfiles:\n- {name: default, plugins: [{pluginRef: round-robin-picker}]}\n",
        "f",
    )
    done = replay(logged(4), turns)
    assert (done.same, [one.now for one in done.differences]) == (2, ["holder", "holder"])


def test_replay_text_has_counts_and_differences() -> None:
    done = replay(logged(5), read_configuration(None))
    assert text(done, most=2) == (
        "5 requests, 0 keep their endpoint (0.0%)\n"
        "prompt tokens held by the original endpoints: 1.0%, by the new ones: 93.8%\n"
        "  r0: idle (holds 160) -> holder (holds 15000)\n"
        "  r1: idle (holds 160) -> holder (holds 15000)\n"
        "  and 3 more\n"
    )
    assert text(ReplayReport(0, 0, 0, 0, 0, ())) == "the file contains no decisions\n"
    assert text(ReplayReport(0, 0, 0, 0, 0, (), 3)) == (
        "0 requests, 0 keep their endpoint (0%)\n"
        "prompt tokens held by the original endpoints: 0%, by the new ones: 0%\n"
        "skipped: 3 requests that named a routing-strategy\n"
    )


EVEN = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: session-affinity-scorer
  parameters: {strategy: session_id}
- type: least-request-picker
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins: [{pluginRef: queue-scorer}, {pluginRef: session-affinity-scorer}, \
{pluginRef: max-score-picker}]
- name: fewest
  plugins: [{pluginRef: least-request-picker}]
"""


def of_equals(profile: str, count: int = 40) -> list[DecisionRecord]:
    """Return decisions between ties, made at random by a router that is restarted half-way."""
    records = []
    for seed in (1, 2):
        chooser = build_profiles(parse_configuration(EVEN, "f"), {}, seed)[profile]
        for place in range(count // 2):
            asked = request(headers={"x-session-id": f"{seed} {place % 7}"})
            decision = chooser.decide(asked, [endpoint(name) for name in "abc"], float(place))
            records.append(record(decision, chooser.headers))
            chooser.routed(asked, decision, decision.chosen[0])
    return records


@pytest.mark.parametrize("profile", ["default", "fewest"])
def test_random_pick_among_ties_is_not_a_difference(profile: str) -> None:
    done = replay(of_equals(profile), parse_configuration(EVEN, "f"), profile)
    assert (done.requests, done.same) == (40, 40)


def test_worse_pick_is_a_difference() -> None:
    busy = msgspec.structs.replace
    worse = [
        busy(
            one,
            endpoints=tuple(
                busy(choice, in_flight=5) if choice.name == one.chosen[0] else choice
                for choice in one.endpoints
            ),
        )
        for one in of_equals("fewest")
    ]
    assert replay(worse, parse_configuration(EVEN, "f"), "fewest").same == 0


def test_replay_skips_requests_that_named_a_strategy() -> None:
    first, second, third = logged()
    named = msgspec.structs.replace(second, headers={"routing-strategy": "random"})
    done = replay([first, named, third], read_configuration(None))
    assert (done.requests, done.apart, len(done.differences)) == (2, 1, 2)
    assert "skipped: 1 requests that named a routing-strategy\n" in text(done)


def test_replay_accepts_built_in_strategies() -> None:
    # The holder has a request in flight, so the idle replica is chosen again.
    assert replay(logged(), strategies(), "least-request").same == 3
    done = replay(logged(), strategies(), "prefix-cache")
    assert {one.now for one in done.differences} == {"holder"}


def test_explained_returns_the_new_decisions_on_one_request() -> None:
    records = logged()
    records[2] = msgspec.structs.replace(records[2], headers={"routing-strategy": "random"})
    for place in (1, 2):
        [made] = explained(records, read_configuration(None), f"r{place}")
        assert (made.request_id, made.chosen[0]) == (f"r{place}", "holder")
        assert made.scorers == (("expected-ttft-scorer", 1.0),)
    assert len(explained([*records, records[0]], read_configuration(None), "r0")) == 2
    with pytest.raises(InvalidSettings, match="the file contains no decision on a request 'r9'"):
        explained(records, read_configuration(None), "r9")


def test_logged_index_returns_an_empty_match_for_an_unknown_replica() -> None:
    prompt = UnreadPrompt(100, Unit.TOKEN)
    assert (prompt.tokens, prompt.unit, prompt.chain(16)) == (100, Unit.TOKEN, [])
    [match] = LoggedIndex("x").match(prompt, ["unknown"])
    assert match == ({}, 100)
