"""Addresses where no cluster is: said in a sentence, within seconds."""

import socket
import time

import pytest

from dto_pipeline.run import ray_start as cluster
from dto_pipeline.run.ray_start import ClusterUnreachable, start_ray
from tests.run.chaos import tiny_config


@pytest.fixture
def closed_port():
    """A port nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_stale_address_is_refused_at_once(closed_port, scheme):
    began = time.monotonic()
    with pytest.raises(ClusterUnreachable, match=r"nothing listens there.*10001 for ray://"):
        start_ray(tiny_config(workers=2).run, f"{scheme}127.0.0.1:{closed_port}")

    assert time.monotonic() - began < 30


def test_a_stale_address_in_the_environment_is_refused_too(closed_port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(ClusterUnreachable, match="nothing listens there"):
        start_ray(tiny_config(workers=2).run, "auto")


def test_a_port_that_only_accepts_is_no_cluster(monkeypatch):
    monkeypatch.setattr(cluster, "REACH_S", 1.0)
    refusal = pytest.raises(ClusterUnreachable, match="no Ray that answers")
    with socket.create_server(("127.0.0.1", 0)) as mute, refusal:
        start_ray(tiny_config(workers=2).run, f"127.0.0.1:{mute.getsockname()[1]}")


@pytest.mark.parametrize("address", ["somewhere", "host:port", "ray://", ":6379"])
def test_what_is_no_address_is_refused_with_what_one_looks_like(address):
    with pytest.raises(ClusterUnreachable, match="HOST:PORT"):
        start_ray(tiny_config(workers=2).run, address)
