import pytest

from kvtier.errors import InvalidSettings
from kvtier.tiers.objectstore.client import Location, parse_url


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket", Location("s3", "bucket", "")),
        ("s3://bucket/", Location("s3", "bucket", "")),
        ("s3://bucket/kv", Location("s3", "bucket", "kv")),
        ("gs://my.bucket-1/a/b_c/", Location("gs", "my.bucket-1", "a/b_c")),
        ("az://container/a.b", Location("az", "container", "a.b")),
    ],
)
def test_parse_url_accepts_buckets_of_all_clouds(url: str, place: Location) -> None:
    assert parse_url(url) == place
    assert parse_url(place.url) == place


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bucket",
        "memory://",
        "memory://bucket",
        "file:///tmp",
        "http://127.0.0.1:8333/bucket",
        "S3://bucket",
        "s3:/bucket",
        "s3://",
        "s3:///prefix",
        "s3://-bucket",
        "s3://bucket:9000/prefix",
        "s3://bucket//a",
        "s3://bucket/a//b",
        "s3://bucket/../other",
        "s3://bucket/a/.hidden",
        "s3://bucket/a b",
        "s3://bucket/a\n",
        "s3://bucket\n",
        "s3://bück/a",
    ],
)
def test_parse_url_refuses_other_urls(url: str) -> None:
    with pytest.raises(InvalidSettings, match=r"^objectstore\.url: "):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2@bucket/prefix",
        "s3://hunter2@bucket",
        "az://container/prefix?sig=hunter2",
        "s3://bucket/#hunter2",
        "s3://AKIA:hunter2/prefix",
        "https://user:hunter2@host/bucket",
    ],
)
def test_parse_url_refuses_credentials_without_repeating_them(url: str) -> None:
    with pytest.raises(InvalidSettings, match="AWS_ACCESS_KEY_ID") as caught:
        parse_url(url)
    assert "hunter2" not in str(caught.value)
