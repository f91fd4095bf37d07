"""An S3 server on loopback for a block, with credentials in the environment only."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer
from pyarrow import fs

from raymtl.cluster import environment

BUCKET = "raymtl-test"


class Server:
    """An S3 server that can go away and come back with what it holds."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(20)
        """The secret key, which nobody should write."""
        self._running = self._started(port=0)
        self.host, self.port = self._running.get_host_and_port()

    def _started(self, port: int) -> ThreadedMotoServer:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        return server

    def go_away(self) -> None:
        """Refuses connections from now on."""
        self._running.stop()

    def come_back(self) -> None:
        self._running = self._started(self.port)


@contextmanager
def s3_server() -> Iterator[Server]:
    """Starts the server and makes a bucket."""
    server = Server()
    credentials = {
        "AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(8).upper()}",
        "AWS_SECRET_ACCESS_KEY": server.secret,
        "AWS_ENDPOINT_URL": f"http://{server.host}:{server.port}",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        with environment(credentials):
            remote = fs.FileSystem.from_uri(f"s3://{BUCKET}?allow_bucket_creation=true")[0]
            remote.create_dir(BUCKET)
            yield server
    finally:
        server.go_away()
