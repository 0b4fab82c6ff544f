"""A real S3-compatible server (moto's) as a process on loopback, and URIs into its buckets."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def serve_s3() -> Iterator[str]:
    """host:port of a server that ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(150):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def s3_uri(server: str, path: str, bucket: str = "bucket") -> str:
    """A URI of a place there."""
    return f"s3://{bucket}/{path}?endpoint_override={server}&scheme=http&region=us-east-1"


def s3_client(server: str):
    """boto3's client, which moto brings, to look behind the project's back."""
    import boto3

    session = boto3.session.Session()
    return session.client(
        "s3",
        endpoint_url=f"http://{server}",
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="y",
    )
