from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.prompt import Unit
from kvtier.router.config import parse_configuration, read_configuration
from kvtier.router.profile import build
from kvtier.router.record import Record, line, record
from kvtier.router.replay import LoggedIndex, LoggedPrompt, Replay, replay, replay_file, text
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


def logged(count: int = 3) -> list[Record]:
    """Decided by the queue alone: the holder waits longer, so it does not get them."""
    holds = {"holder": {"ram": 15_000}, "idle": {"device": 160}}
    indexes = {"prefix": FakeIndex(holds)}
    profile = build(parse_configuration(QUEUE, "f"), indexes, keeps_matches=True)["default"]
    records = []
    for place in range(count):
        fleet = [endpoint("holder", waiting=1, in_flight=1, in_flight_tokens=100), endpoint("idle")]
        asked = request(16_000, request_id=f"r{place}")
        records.append(record(profile.decide(asked, fleet, float(place))))
    return records


def test_the_same_profile_agrees_with_itself() -> None:
    done = replay(logged(), parse_configuration(QUEUE, "f"))
    assert (done.requests, done.same, done.differences) == (3, 3, ())


def test_another_profile_sends_requests_where_their_prefix_is() -> None:
    done = replay(logged(), read_configuration(None))
    assert (done.requests, done.same) == (3, 0)
    assert (done.prompt_tokens, done.held_was, done.held_now) == (48_000, 480, 45_000)
    one = done.differences[0]
    assert (one.request_id, one.was, one.now) == ("r0", "idle", "holder")
    assert (one.held_was, one.held_now) == (160, 15_000)
    assert one.why.scorers == (("expected-ttft-scorer", 1.0),)


def test_a_profile_is_chosen_by_its_name() -> None:
    configuration = parse_configuration(QUEUE, "f")
    assert replay(logged(), configuration, "sooner").same == 0
    with pytest.raises(
        InvalidSettings, match="no profile is called 'soner'; did you mean 'sooner'"
    ):
        replay(logged(), configuration, "soner")


def test_indexes_of_other_names_answer_what_was_logged_of_all() -> None:
    old = parse_configuration(
        "apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig\n"
        "plugins:\n- {type: prefix-cache-scorer, name: cpu-scorer}\n"
        "schedulingProfiles:\n- {name: default, plugins: [{pluginRef: cpu-scorer}]}\n",
        "f",
    )
    assert {one.now for one in replay(logged(), old).differences} == {"holder"}


def test_parts_learn_from_the_replayed_choices() -> None:
    turns = parse_configuration(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        "plugins:\n- type: round-robin-picker\n"
        "schedulingProfiles:\n- {name: default, plugins: [{pluginRef: round-robin-picker}]}\n",
        "f",
    )
    done = replay(logged(4), turns)
    assert (done.same, [one.now for one in done.differences]) == (2, ["holder", "holder"])


def test_the_text_counts_and_lists(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"".join(line(one) for one in logged(5)))
    done = replay_file(str(file), None)
    assert text(done, most=2) == (
        "5 requests, 0 go where they went (0.0%)\n"
        "prompt tokens held where they went: 1.0%, where they would go: 93.8%\n"
        "  r0: idle (holds 160) -> holder (holds 15000)\n"
        "  r1: idle (holds 160) -> holder (holds 15000)\n"
        "  and 3 more\n"
    )
    assert text(Replay(0, 0, 0, 0, 0, ())) == "no decisions in the file\n"


def test_a_logged_prompt_has_a_length_and_nothing_else() -> None:
    prompt = LoggedPrompt(100, Unit.CHARACTER)
    assert (prompt.tokens, prompt.unit, prompt.chain(16)) == (100, Unit.CHARACTER, [])
    [match] = LoggedIndex("x").match(prompt, ["unknown"])
    assert match == ({}, 100)
