import msgspec
import pytest

from kvtier.settings import DiskSettings, RamSettings, Settings


def test_settings_cannot_change_once_made() -> None:
    settings = Settings(ram=RamSettings(capacity=1))
    with pytest.raises(AttributeError):
        settings.ram.capacity = 2  # type: ignore[misc]


def test_settings_compare_and_travel_as_data() -> None:
    settings = Settings(ram=RamSettings(capacity=1), disk=DiskSettings(path="/cache", capacity=2))
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings
