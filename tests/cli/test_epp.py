import pytest
import yaml
from click.testing import CliRunner

from kvtier.cli.main import EXIT_WRONG_SETTING, kvtier

ENDPOINT = ("--endpoint", "http://127.0.0.1:8000")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(kvtier, ["epp", *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no endpoint"),
        (("--endpoint", "ftp://x"), "--endpoint"),
        ((*ENDPOINT, *ENDPOINT), "twice"),
        ((*ENDPOINT, "--tls-key", "k"), "give both"),
        ((*ENDPOINT, "--insecure", "--tls-key", "k", "--tls-certificate", "c"), "one of them"),
        ((*ENDPOINT, "--config-text", "a: 1", "--config-file", "x"), "one of them"),
        ((*ENDPOINT, "--config-text", "kind: Nonsense"), "--config-text"),
        ((*ENDPOINT, "--objective", "batch"), "write batch=-1"),
        ((*ENDPOINT, "--max-body", "lots"), "--max-body"),
        ((*ENDPOINT, "--drain", "soon"), "--drain"),
        ((*ENDPOINT, "--pool-name", "p"), "Kubernetes alone"),
        (("--pool-name", "p", "--selector", "a=b"), "one of them"),
        (("--selector", "a"), "--selector"),
        (("--pool-name", "p", "--pool-group", "g"), "--pool-group"),
        (("--endpoints", "/nowhere/replicas.yaml"), "/nowhere/replicas.yaml"),
    ],
)
def test_wrong_flags_are_one_line_that_names_them(arguments: tuple[str, ...], said: str) -> None:
    code, output = run(*arguments)
    assert code == EXIT_WRONG_SETTING
    assert said in output.splitlines()[-1]
    assert "Traceback" not in output


def test_an_envoy_configuration_is_printed() -> None:
    code, output = run("envoy-config", "--endpoint", "127.0.0.1:8000", "--fail-close")
    assert code == 0
    assert yaml.safe_load(output)["static_resources"]["listeners"]
    code, output = run("envoy-config", "--endpoint", "replica.local:8000")
    assert code == EXIT_WRONG_SETTING
    assert "write 127.0.0.1:8000" in output
