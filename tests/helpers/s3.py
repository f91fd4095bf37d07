"""An S3 server on loopback for a block, with credentials in the environment only."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer
from pyarrow import fs

from raymtl.cluster import environment

BUCKET = "raymtl-test"


@contextmanager
def s3_server() -> Iterator[str]:
    """Starts the server and makes a bucket; yields the secret key, which nobody should write."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    secret = secrets.token_hex(20)
    credentials = {
        "AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(8).upper()}",
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        with environment(credentials):
            fs.FileSystem.from_uri(f"s3://{BUCKET}?allow_bucket_creation=true")[0].create_dir(
                BUCKET
            )
            yield secret
    finally:
        server.stop()
