"""Surveys on the terminal."""

import os
from io import StringIO

import pytest
from rich.console import Console

from kvtier.clock import wall_s
from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.spaces import Secrets
from kvtier.inspection.survey import FileTally
from kvtier.inspection.surveyor import Surveyor
from kvtier.inspection.tables import age, ages_text, survey_view
from kvtier.testing.samples import sample_space
from tests.inspection.stores import BLOCK_BYTES, NAME, StoreFolder, keys


def shown(store: StoreFolder, *, verbose: bool = False) -> str:
    folder = FolderView(store.path)
    survey = Surveyor(folder, Secrets(), lambda name, share: None).survey(now_s=wall_s())
    folder.close()
    out = StringIO()
    Console(file=out, width=120, force_terminal=True, color_system=None).print(
        survey_view(survey, verbose=verbose)
    )
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0.4, "0 s"), (59, "59 s"), (90, "1.5 min"), (7200, "2.0 h"), (86_400, "1.0 d")],
)
def test_age_is_formatted_with_a_unit(seconds: float, text: str) -> None:
    assert age(seconds) == text
    assert ages_text(FileTally().totals(), 0.0) == "-"


def test_survey_view_shows_every_part(store: StoreFolder) -> None:
    store.fill(keys(10), reads=2)
    store.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, dtype="bfloat16"))
    store.plant_tree({"model_name": "meta/llama", "blocks_per_file": 4})
    store.plant(f"{NAME}/quarantine/x.kvt")
    os.truncate(store.file(keys(1, 8)[0]), 5000)
    store.plant(".tmp-x")
    text = shown(store)
    for part in (
        "key spaces 2",
        "other trees 1",
        "temporaries 1 files, 1B",
        f"{NAME} model tiny dtype float32",
        "segments 3 files, 8 blocks",
        "wrong length 1 files; run kvtier fsck",
        "quarantined x.kvt: 1 bytes are fewer than any header has",
        "hottest prefixes",
        "prefix 2 8 128",
        "what keeps 2 key spaces of tiny apart dtype",
        "vLLM fs, not kvtier's model_name meta/llama",
        "verified by nothing",
    ):
        assert part in text
    assert "hash_seed" not in text
    assert "hash_seed 0" in shown(store, verbose=True)


def test_survey_view_of_empty_folder(store: StoreFolder) -> None:
    assert "key spaces none" in shown(store)


def test_survey_view_does_not_interpret_names(store: StoreFolder) -> None:
    store.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, model="[bold]m\x1b[2J"))
    store.plant("[red]x\x1b[2J")
    for number in range(30):
        store.plant(f"[b]{number:02}")
    text = shown(store)
    assert "model [bold]m\\x1b[2J" in text
    assert "[b]29" not in text
    assert "and more; --json lists them" in text
    assert "\x1b[2J" not in text
