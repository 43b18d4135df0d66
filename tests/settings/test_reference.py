from pathlib import Path

import pytest

from kvtier import settings
from kvtier.settings import reference
from kvtier.settings.compat.vllm import ENGINE_KEYS
from kvtier.settings.options import OPTIONS, REQUIRED

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("path", "render"),
    [
        ("examples/every_option.yaml", reference.render_yaml),
        ("docs/reference/settings.md", reference.render_markdown),
    ],
)
def test_generated_files_are_fresh(path: str, render: object) -> None:
    assert callable(render)
    assert (ROOT / path).read_text() == render(), "run python scripts/render_reference.py"


def test_annotated_file_sets_every_option_to_its_default(tmp_path: Path) -> None:
    file = tmp_path / "every_option.yaml"
    file.write_text(reference.render_yaml())
    resolved = settings.resolve(env={}, file=str(file))
    for option in OPTIONS:
        found = resolved.values[option.name]
        assert found.origin.startswith(str(file))
        if option.default is not REQUIRED:
            assert found.value == option.default


def test_reference_has_all_names_of_every_option() -> None:
    page = reference.render_markdown()
    for option in OPTIONS:
        for text in (option.name, option.variable, option.flag, option.about.text):
            assert text in page
    for key in ENGINE_KEYS:
        assert f"| `{key}` | " in page


@pytest.mark.parametrize("disk", ["/x=1GB", "none"])
def test_rendered_values_can_be_loaded_again(tmp_path: Path, disk: str) -> None:
    resolved = settings.resolve({"ram": "1GiB", "disk": disk, "transfer": {"drain": 0.25}}, env={})
    for render in (reference.render_values, reference.render_origins):
        file = tmp_path / "shown.yaml"
        file.write_text(render(resolved))
        assert settings.load(env={}, file=str(file)) == resolved.settings
    assert "capacity: 1GiB                          # kv_connector_extra_config\n" in (
        reference.render_origins(resolved)
    )
