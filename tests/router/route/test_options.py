from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.route.options import ROWS, RouteOptions, flags_of, load


def test_load_without_sources_returns_defaults() -> None:
    assert load({}, {}) == RouteOptions()
    assert RouteOptions().host == "127.0.0.1"


def test_flags_override_variables_and_variables_override_file(tmp_path: Path) -> None:
    file = tmp_path / "route.yaml"
    file.write_text("port: 1\nqueue: 1\nin_flight: 1\nmax_body: 1MiB\n")
    env = {"KVTIER_ROUTE_CONFIG": str(file), "KVTIER_ROUTE_PORT": "2", "KVTIER_ROUTE_QUEUE": "2"}
    options = load({"--port": "3"}, env)
    assert (options.port, options.queue, options.in_flight) == (3, 2, 1)
    assert options.max_body == 1 << 20
    assert load({}, {}, str(file)).port == 1


def test_durations_with_units_are_parsed() -> None:
    options = load({"--idle-timeout": "250ms", "--drain-timeout": "2m"}, {})
    assert (options.idle_timeout, options.drain_timeout) == (0.25, 120.0)


@pytest.mark.parametrize(
    ("flags", "env", "said"),
    [
        ({"--port": "x"}, {}, "--port: 'x'"),
        ({"--port": "70000"}, {}, "--port: 70000 is not a port"),
        ({"--idle-timeout": "5 parsecs"}, {}, "--idle-timeout: '5 parsecs'"),
        ({"--head-timeout": "0"}, {}, "too small"),
        ({"--explain": "yes"}, {}, "'yes' is not one of never, asked, always"),
        ({"--tls-key": "k"}, {}, "belong together"),
        ({}, {"KVTIER_ROUTE_PROT": "1"}, "did you mean 'KVTIER_ROUTE_PORT'"),
        ({}, {"KVTIER_ROUTE_QUEUE": "-1"}, "KVTIER_ROUTE_QUEUE: '-1'"),
        (
            {},
            {"KVTIER_ROUTE_PROFILE": "p"},
            "KVTIER_ROUTE_PROFILE can only be set by the flag --profile",
        ),
        ({}, {"KVTIER_ROUTE_CONFIG": "/nowhere"}, "KVTIER_ROUTE_CONFIG: /nowhere cannot be read"),
    ],
)
def test_invalid_value_is_refused_with_its_source(
    flags: dict[str, str], env: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load(flags, env)
    assert said in str(caught.value)


def test_invalid_file_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "route.yaml"
    file.write_text("port: 1\nqeue: 1\n")
    with pytest.raises(InvalidSettings, match=r"route\.yaml line 2: .*did you mean 'queue'"):
        load({}, {}, str(file))
    for name in ("pool_name", "pool-name"):
        file.write_text(f"port: 1\n{name}: p\n")
        with pytest.raises(
            InvalidSettings, match=rf"line 2: {name} can only be set by the flag --pool-name"
        ):
            load({}, {}, str(file))
    file.write_text("port")
    with pytest.raises(InvalidSettings, match="write `port: 30080`"):
        load({}, {}, str(file))
    with pytest.raises(InvalidSettings, match="--config: /nowhere cannot be read"):
        load({}, {}, "/nowhere")
    file.write_text("port: 1\nqueue: many\n")
    with pytest.raises(InvalidSettings, match=r"route\.yaml line 2: queue: 'many'"):
        load({}, {}, str(file))


def test_variables_of_kubernetes_service_are_ignored() -> None:
    env = {
        "KVTIER_ROUTE_PORT": "tcp://10.0.0.1:80",
        "KVTIER_ROUTE_SERVICE_HOST": "10.0.0.1",
        "KVTIER_ROUTE_PORT_80_TCP_ADDR": "10.0.0.1",
        "KVTIER_ROUTE_API_KEY": "secret",
        "KVTIER_RAM_CAPACITY": "1GiB",
    }
    assert load({}, env) == RouteOptions()


def test_every_setting_has_flag_variable_and_text() -> None:
    assert {row.name for row in ROWS} == set(RouteOptions.__struct_fields__)
    row = next(row for row in ROWS if row.name == "drain_timeout")
    assert (row.flag, row.variable) == ("--drain-timeout", "KVTIER_ROUTE_DRAIN_TIMEOUT")
    for row in ROWS:
        assert row.about.text.endswith(".")
        assert row.parse(row.about.example, "example") is not None


def test_given_parameters_become_flags() -> None:
    assert flags_of({"drain_timeout": "1s", "port": None}) == {"--drain-timeout": "1s"}
