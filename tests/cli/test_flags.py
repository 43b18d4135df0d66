import json

import click
from click.testing import CliRunner

from kvtier.cli.flags import given, setting_flags
from kvtier.settings.options import OPTIONS


@click.command()
@setting_flags
def probe(file: str | None, **flags: str | None) -> None:
    click.echo(json.dumps([file, given(flags)]))


def test_every_setting_has_a_flag() -> None:
    arguments = [text for option in OPTIONS for text in (option.flag, option.about.example)]
    ran = CliRunner().invoke(probe, [*arguments, "--ram", "1GiB", "--disk", "/x=1GB"])
    expected = {"--ram": "1GiB", "--disk": "/x=1GB"}
    expected |= {option.flag: option.about.example for option in OPTIONS}
    assert ran.exit_code == 0
    assert json.loads(ran.output) == [None, expected]


def test_flags_not_given_are_left_out() -> None:
    assert CliRunner().invoke(probe, ["--config", "x.yaml"]).output == '["x.yaml", {}]\n'
