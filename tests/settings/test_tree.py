import msgspec
import pytest

from kvtier.settings import DiskSettings, RamSettings, Settings


def test_settings_are_immutable() -> None:
    settings = Settings(ram=RamSettings(capacity=1))
    with pytest.raises(AttributeError):
        settings.ram.capacity = 2  # type: ignore[misc]


def test_settings_can_be_compared_and_encoded() -> None:
    settings = Settings(ram=RamSettings(capacity=1), disk=DiskSettings(path="/cache", capacity=2))
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings
