from pathlib import Path

from kvtier_bench.client import ServerAddress
from kvtier_bench.router import contest
from kvtier_bench.router.contest import OTHERS, OURS, PROFILE, TIERED, commands_before_engines
from kvtier_bench.router.engine_replicas import EngineReplica, settings
from kvtier_bench.server import Server
from tests.bench.router.test_traffic import small

EXAMPLES = Path(__file__).parents[3] / "examples" / "router"


def two(scratch: Path) -> list[EngineReplica]:
    made = []
    for number in (0, 1):
        server = Server(settings(Path("m"), small(), scratch, number, (1, 2)))
        server.endpoint = ServerAddress("127.0.0.1", 8_000 + number, "served")
        made.append(EngineReplica(server, f"tcp://h:{number}", f"tcp://h:{number + 10}"))
    return made


def test_commands_name_the_same_replicas_for_every_router(tmp_path: Path) -> None:
    peer = tmp_path / "vllm-router"
    peer.touch()
    commands = commands_before_engines(
        two(tmp_path), Path("model"), peer=peer, examples=EXAMPLES, scratch=tmp_path
    )
    assert list(commands) == [*OURS, *OTHERS]
    for name, command in commands.items():
        text = " ".join(command)
        for number in (0, 1):
            assert f"http://127.0.0.1:{8_000 + number}" in text, name
    assert (EXAMPLES / PROFILE).is_file()
    assert str(EXAMPLES / PROFILE) in commands[TIERED]


def test_commands_of_event_followers_name_the_event_addresses(tmp_path: Path) -> None:
    peer = tmp_path / "vllm-router"
    peer.touch()
    commands = commands_before_engines(
        two(tmp_path), Path("model"), peer=peer, examples=EXAMPLES, scratch=tmp_path
    )
    told = {name for name, command in commands.items() if "tcp://h:1" in " ".join(command)}
    assert told == {contest.DEFAULT, contest.PEER_KV_AWARE}
    theirs = commands[contest.PEER_KV_AWARE]
    assert theirs[theirs.index("--kv-event-model") + 1] == "served"
    assert theirs[theirs.index("--kv-event-block-size") + 1] == "128"
    assert "http://127.0.0.1:8001=tcp://h:11" in theirs
    assert (
        "http://127.0.0.1:8001,label=kv-events:tcp://h:1,label=kv-events-replay:tcp://h:11"
        in (commands[contest.DEFAULT])
    )


def test_commands_without_the_peer_are_those_of_kvtier(tmp_path: Path) -> None:
    commands = commands_before_engines(
        two(tmp_path), Path("model"), peer=tmp_path / "none", examples=EXAMPLES, scratch=tmp_path
    )
    assert list(commands) == [*OURS, contest.ROUND_ROBIN]
