"""The real S3 server of the object store's tests, and an environment without credentials."""

from tests.tiers.objectstore.conftest import (
    client,
    owner,
    plain_environment,
    runtime,
    s3,
    url,
    weed,
)

__all__ = ["client", "owner", "plain_environment", "runtime", "s3", "url", "weed"]
