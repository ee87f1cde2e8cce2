"""Make the bucket of the tracking server, once; a bucket that exists is left as it is.

    python docker/make_bucket.py BUCKET

The endpoint and the keys come from MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

WAIT_S = 60.0  # a store may answer its health check before it can write


def main(argv: Sequence[str] | None = None) -> int:
    """Make the bucket; returns the exit code: 0 done, 1 the store does not answer or refuses, 2 usage."""
    names = sys.argv[1:] if argv is None else list(argv)
    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL")
    if len(names) != 1 or not endpoint:
        sys.stderr.write("error: expected one bucket name, and MLFLOW_S3_ENDPOINT_URL in the environment\n")
        return 2
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    store = boto3.client("s3", endpoint_url=endpoint, region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            if names[0] in {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}:
                sys.stdout.write(f"bucket {names[0]} is there\n")
                return 0
            store.create_bucket(Bucket=names[0])
        except (BotoCoreError, ClientError) as error:
            refused = isinstance(error, ClientError) and error.response["ResponseMetadata"]["HTTPStatusCode"] in {401, 403}
            if refused or time.monotonic() > deadline:
                sys.stderr.write(f"error: cannot make bucket {names[0]} at {endpoint}: {error}\n")
                return 1
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
