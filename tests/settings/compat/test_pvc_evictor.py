import pytest

from kvtier.errors import InvalidSettings
from kvtier.settings.compat.pvc_evictor import read


def test_read_without_mount_returns_none() -> None:
    assert read({"CLEANUP_THRESHOLD": "nonsense"}) is None


def test_read_uses_defaults_of_llm_d_evictor() -> None:
    found = read({"PVC_MOUNT_PATH": "/kv-cache"})
    assert found is not None
    assert found.path == "/kv-cache/kv/model-cache/models"
    assert (found.high, found.low, found.grace_s) == ("85%", "70%", 3600)
    assert not found.dry_run
    assert found.events is None
    assert found.sweep_folders
    assert (found.log_level, found.log_file, found.ignored) == ("INFO", None, ())


def test_read_understands_every_variable() -> None:
    found = read(
        {
            "PVC_MOUNT_PATH": "/mnt/",
            "CACHE_DIRECTORY": "/cache/",
            "CLEANUP_THRESHOLD": "90.5",
            "TARGET_THRESHOLD": "60.0",
            "NUM_CRAWLER_PROCESSES": "8",
            "LOGGER_INTERVAL_SECONDS": "0.5",
            "FILE_QUEUE_MAXSIZE": "10000",
            "FILE_QUEUE_MIN_SIZE": "1000",
            "DELETION_BATCH_SIZE": "100",
            "FILE_ACCESS_TIME_THRESHOLD_MINUTES": "0.5",
            "ENABLE_DIR_CLEANUP": "False",
            "DIR_CLEANUP_TTL_SECONDS": "120",
            "DRY_RUN": "TRUE",
            "LOG_LEVEL": "debug",
            "LOG_FILE_PATH": "/tmp/log",
            "STORAGE_EVENTS_ENDPOINT": "tcp://x:1",
        }
    )
    assert found is not None
    assert found.path == "/mnt/cache"
    assert (found.high, found.low, found.grace_s) == ("90.5%", "60.0%", 30)
    assert found.dry_run
    assert not found.sweep_folders
    assert (found.log_level, found.log_file) == ("DEBUG", "/tmp/log")
    assert found.events == "tcp://x:1"
    assert len(found.ignored) == 6


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CLEANUP_THRESHOLD", "high"),
        ("TARGET_THRESHOLD", "-5"),
        ("TARGET_THRESHOLD", "85"),
        ("CLEANUP_THRESHOLD", "101"),
        ("FILE_ACCESS_TIME_THRESHOLD_MINUTES", ""),
        ("DRY_RUN", "maybe"),
        ("ENABLE_DIR_CLEANUP", "2"),
        ("LOG_LEVEL", "LOUD"),
        ("CACHE_DIRECTORY", "../../etc"),
    ],
)
def test_invalid_variable_is_refused_with_its_name(name: str, text: str) -> None:
    with pytest.raises(InvalidSettings, match=name):
        read({"PVC_MOUNT_PATH": "/kv-cache", name: text})
