from pathlib import Path

import pytest

from scripts import prepare_model


def fill(folder: Path, *, short: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, least in prepare_model.NEEDED_BYTES.items():
        with (folder / name).open("wb") as file:
            file.truncate(least - (name == short))  # sparse: no bytes are written


def test_a_whole_folder_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "model")
    monkeypatch.setattr(prepare_model, "convert", None)  # would raise if it were called
    prepare_model.prepare(tmp_path / "model")
    assert "is ready" in capsys.readouterr().out


@pytest.mark.parametrize("short", prepare_model.NEEDED_BYTES)
def test_a_folder_with_a_short_file_is_refused(tmp_path: Path, short: str) -> None:
    fill(tmp_path / "model", short=short)
    with pytest.raises(SystemExit, match=f"lacks {short}: remove it"):
        prepare_model.prepare(tmp_path / "model")


def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: Path, target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_model, "weights_folder", lambda: tmp_path)
    monkeypatch.setattr(prepare_model, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_model.prepare(tmp_path / "models" / "small")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_conversion_that_left_files_out_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_model, "weights_folder", lambda: tmp_path)
    monkeypatch.setattr(
        prepare_model, "convert", lambda source, target: fill(target, short="model.safetensors")
    )
    with pytest.raises(SystemExit, match=r"did not write model\.safetensors"):
        prepare_model.prepare(tmp_path / "models" / "small")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_finished_conversion_appears_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_model, "weights_folder", lambda: tmp_path)
    monkeypatch.setattr(prepare_model, "convert", lambda source, target: fill(target))
    prepare_model.prepare(tmp_path / "models" / "small")
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["small"]
    assert prepare_model.missing_files(tmp_path / "models" / "small") == []
