from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import Match
from kvtier.index.fleet.prompt import Unit
from kvtier.router.choose.base import Endpoint, ReplicaLoad, ReplicaTier
from kvtier.router.choose.record import (
    DecisionRecord,
    EndpointRecord,
    encode_line,
    read_records,
    record,
)
from kvtier.router.config.profiles import build_profiles
from kvtier.router.config.reading import parse_configuration
from tests.router.cases import FakeIndex, Words, endpoint, request

TEXT = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: decode-filter
- type: queue-scorer
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: known}
- {type: approx-prefix-cache-producer, name: known}
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: decode-filter
  - {pluginRef: queue-scorer, weight: 2}
  - pluginRef: prefix-cache-scorer
"""


def decided() -> DecisionRecord:
    profile = build_profiles(
        parse_configuration(TEXT, "f"), {"known": FakeIndex({"b": {"ram": 800}})}
    )
    fleet = [
        endpoint("a", labels={"llm-d.ai/role": "prefill"}),
        endpoint(
            "b",
            load=ReplicaLoad(
                waiting=2, tiers={"ram": ReplicaTier(capacity_tokens=5)}, adapters=frozenset({"x"})
            ),
            in_flight=3,
            in_flight_tokens=4,
            pending_tokens=5,
        ),
        endpoint("c", waiting=1),
    ]
    asked = request(
        prompt=Words(1600, Unit.CHARACTER),
        headers={
            "authorization": "Bearer secret",
            "x-session-id": "s",
            "routing-strategy": "random",
        },
        max_tokens=7,
        priority=-1,
    )
    decision = profile["default"].decide(asked, fleet, 12.5)
    return record(decision, frozenset({"x-session-id"}))


def test_record_contains_the_inputs_of_the_decision() -> None:
    made = decided()
    assert (made.request_id, made.model, made.at_s, made.profile) == ("r", "m", 12.5, "default")
    assert (made.prompt_tokens, made.unit, made.max_tokens, made.priority) == (
        1600,
        Unit.CHARACTER,
        7,
        -1,
    )
    assert made.scorers == (("queue-scorer", 2.0), ("prefix-cache-scorer", 1.0))
    gone, holder, idle = made.endpoints
    assert (gone.removed_by, gone.scores, gone.total) == ("decode-filter", (), 0.0)
    # The queues are 2 and 1; the match is 800 of 1600 tokens.
    assert (holder.scores, holder.total) == ((0.0, 0.5), 0.5)
    assert (idle.scores, idle.total) == ((1.0, 0.0), 2.0)
    assert made.chosen == ("c", "b")
    assert holder.held["known"].match() == Match({"ram": 800}, 1600)
    assert holder.reasons == {"prefix-cache-scorer": "800 of 1600 tokens in any tier"}


def test_record_keeps_only_headers_of_plugins_and_the_strategy() -> None:
    made = decided()
    assert made.headers == {"x-session-id": "s", "routing-strategy": "random"}
    assert b"secret" not in encode_line(made)


def test_endpoint_record_restores_the_endpoint() -> None:
    back = decided().endpoints[1].endpoint()
    assert back.load == ReplicaLoad(
        waiting=2, tiers={"ram": ReplicaTier(capacity_tokens=5)}, adapters=frozenset({"x"})
    )
    assert (back.in_flight, back.in_flight_tokens, back.pending_tokens) == (3, 4, 5)


def test_read_records_returns_written_records(tmp_path: Path) -> None:
    made = decided()
    file = tmp_path / "decisions.jsonl"
    file.write_bytes(encode_line(made) + b"\n" + encode_line(made))
    assert encode_line(made).count(b"\n") == 1
    assert list(read_records(str(file))) == [made, made]


@pytest.mark.parametrize(
    "text", [b"{}", b"not json", b"\xff\xfe", b'{"request_id": 3}', b"[" * 9999]
)
def test_read_records_rejects_other_data_with_its_line(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "decisions.jsonl"
    file.write_bytes(encode_line(decided()) + text + b"\n")
    with pytest.raises(InvalidSettings, match=r"decisions\.jsonl line 2: not a logged decision"):
        list(read_records(str(file)))


def test_read_records_skips_a_truncated_line_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = decided()
    file = tmp_path / "decisions.jsonl"
    for length in range(1, len(encode_line(made)) - 1):
        cut = encode_line(made)[:length]
        for text, whole in (
            (encode_line(made) + cut, 1),
            (encode_line(made) + cut + b"\n" + encode_line(made), 2),
        ):
            file.write_bytes(text)
            assert list(read_records(str(file))) == [made] * whole
            assert caplog.messages == [f"{file} line 2 is truncated and skipped"]
            caplog.clear()
    file.write_bytes(encode_line(made) + encode_line(made).rstrip(b"\n"))
    assert list(read_records(str(file))) == [made, made]
    assert caplog.messages == []


def test_read_records_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="absent cannot be read: No such file"):
        list(read_records(str(tmp_path / "absent")))


def test_endpoint_record_has_all_fields_of_an_endpoint() -> None:
    assert set(Endpoint.__struct_fields__) < set(EndpointRecord.__struct_fields__)
