from kvtier.cli import reference
from kvtier.cli.main import COMMANDS


def test_reference_page_has_the_help_of_every_command() -> None:
    text = reference.render_markdown()
    for command in COMMANDS:
        assert f"\n## kvtier {command}\n\n```text\nUsage: kvtier {command} " in text
    assert "\n## kvtier config show\n" in text
