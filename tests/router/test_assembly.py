import ssl
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.prompt import Unit
from kvtier.router.assembly import Assembly
from kvtier.router.choose.base import Endpoint, InferenceRequest
from kvtier.router.config.reading import parse_configuration, read_configuration
from kvtier.router.fleet.members import Fleet
from kvtier.router.fleet.replicas import Replica
from kvtier.router.learn.gauges import GaugeNames
from tests.router.learn.folder import make_folder
from tests.router.replicas import replicas
from tests.router.route.routers import run, stand, until

TWO_TIERS = """\
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: prefix-cache-scorer
  name: gpu-prefix-cache-scorer
- type: prefix-cache-scorer
  name: cpu-prefix-cache-scorer
  parameters: {autoTune: false, lruCapacityPerServer: 41000}
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: gpu-prefix-cache-scorer, weight: 1}
  - {pluginRef: cpu-prefix-cache-scorer, weight: 1}
"""


def test_assembly_offers_configured_profiles_and_built_in_strategies() -> None:
    assembled = Assembly(parse_configuration(TWO_TIERS, "test"))
    assert assembled.choices.of(None) is assembled.choices.of("default")
    for name in (
        *("random", "least-request", "least-latency", "throughput", "prefix-cache"),
        *("power-of-two", "session-affinity"),
    ):
        assert assembled.choices.of(name) is not None
    assert Assembly(read_configuration(None), default="random").choices.of("").name == "random"  # type: ignore[attr-defined]
    with pytest.raises(InvalidSettings, match="'fastest'"):
        Assembly(read_configuration(None), default="fastest")


def test_repeated_prompt_is_routed_to_the_same_replica() -> None:
    async def test() -> None:
        for text in (TWO_TIERS, None):
            configuration = parse_configuration(text, "test") if text else read_configuration(None)
            async with Assembly(configuration) as assembled:
                chooser = assembled.choices.of(None)
                endpoints = [
                    Endpoint(name=name, address=f"{name}:1", models=frozenset("m"))
                    for name in "abcd"
                ]
                prompt = await assembled.prompts.of({"prompt": "tell me " * 500}, "m")
                assert prompt.unit is Unit.CHARACTER
                request = InferenceRequest(request_id="1", model="m", prompt=prompt)
                first = chooser.decide(request, endpoints, 1.0)
                chooser.routed(request, first, first.chosen[0])
                for now_s in range(2, 8):
                    again = chooser.decide(request, endpoints, float(now_s))
                    assert again.chosen[0].endpoint is first.chosen[0].endpoint

    run(test())


def test_tokenizer_folder_without_a_tokenizer_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings):
        Assembly(read_configuration(None), tokenizers={"*": tmp_path})


@pytest.mark.parametrize("name", ["*", "m"])
def test_configured_tokenizer_takes_precedence_over_engines(tmp_path: Path, name: str) -> None:
    async def test() -> None:
        fleet = Fleet()
        async with (
            replicas() as (a,),
            Assembly(
                read_configuration(None), tokenizers={name: make_folder(tmp_path)}
            ) as assembled,
        ):
            for listener in assembled.listeners:
                fleet.add_listener(listener)
            labels = {"kv-events": "tcp://127.0.0.1:1"}
            fleet.update([Replica(name="a", url=a.url, models=frozenset("m"), labels=labels)])
            (member,) = fleet.members
            fleet.mark_healthy(member, (), 0.0)
            prompt = await assembled.prompts.of({"prompt": "The quick brown fox"}, "m")
            assert prompt.unit is Unit.TOKEN
            assert not a.requests

    run(test())


def test_turns_of_a_conversation_go_to_one_replica() -> None:
    async def test() -> None:
        assembled = Assembly(read_configuration(None))
        async with assembled, stand(count=3, chooser=assembled.choices.of(None)) as at:
            seen = {}
            for turn in range(4):
                for who in "xyz":
                    async with at.post(prompt=f"{who} " * 2000 + "more " * turn) as answer:
                        seen.setdefault(who, set()).add((await answer.json())["from"])
            assert all(len(replicas) == 1 for replicas in seen.values()), seen

    run(test())


@pytest.mark.parametrize("names", [None, GaugeNames(waiting=("theirs",))])
def test_gauge_names_come_from_the_configuration_or_the_caller(
    names: GaugeNames | None,
) -> None:
    engine = "{name: e, queuedRequestsSpec: ours}"
    extractor = f"- {{type: core-metrics-extractor, parameters: {{engineConfigs: [{engine}]}}}}\n"
    text = TWO_TIERS.replace("plugins:\n", f"plugins:\n{extractor}", 1)

    async def test() -> None:
        fleet = Fleet()
        async with (
            replicas() as (a,),
            Assembly(parse_configuration(text, "test"), names=names) as assembled,
        ):
            a.metrics = "ours 3\ntheirs 4\nvllm:num_requests_waiting 5\n"
            for listener in assembled.listeners:
                fleet.add_listener(listener)
            fleet.update([Replica(name="a", url=a.url)])
            endpoint = fleet.members[0].endpoint
            await until(lambda: endpoint.load.waiting != 0, "the first scrape")
            assert endpoint.load.waiting == (3 if names is None else 4)

    run(test())


def test_assembly_passes_its_tls_context_to_the_learner() -> None:
    tls = ssl.create_default_context()
    assert Assembly(read_configuration(None), tls=tls)._learner._tls is tls
