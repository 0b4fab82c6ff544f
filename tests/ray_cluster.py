"""The Ray cluster that tests share: two nodes of one CPU on this machine, which work in `/` as a site's nodes do."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from ray.cluster_utils import Cluster

from tests import s3_server

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}
_ENVIRONMENT = {
    **s3_server.ENVIRONMENT,  # workers inherit credentials from their node
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "1000",  # Ray notices the death of a node in seconds instead of a quarter minute
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class RayNodes:
    """The cluster and its doors."""

    cluster: Cluster
    client: str  # ray:// address
    jobs: str  # http:// address of the job server

    @property
    def address(self) -> str:
        return str(self.cluster.address)


@contextmanager
def serve_ray() -> Iterator[RayNodes]:
    """A head, with two pretended GPUs, and another node."""
    client, dashboard, agent = (free_port() for _ in range(3))
    head = {
        **NODE,
        "num_gpus": 2,
        "ray_client_server_port": client,
        "include_dashboard": True,
        "dashboard_port": dashboard,
        "dashboard_agent_listen_port": agent,  # its usual one may be taken by a Ray beside us
        "include_log_monitor": False,
        "no_monitor": True,  # of the autoscaler
    }
    # Its own place, in which its jobs find its address: every Ray of a machine writes that to the usual one.
    folder = tempfile.mkdtemp(prefix="dto", dir="/tmp")  # short: socket paths end at 107 bytes
    with mock.patch.dict(os.environ, {**_ENVIRONMENT, "RAY_TMPDIR": folder}), contextlib.chdir("/"):
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(**NODE)
    yield RayNodes(cluster, f"ray://127.0.0.1:{client}", f"http://127.0.0.1:{dashboard}")
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
