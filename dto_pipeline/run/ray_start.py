"""Start Ray, or join a cluster; check beforehand that the address answers and that paths of sockets are short enough.

When Ray cannot start, it waits for minutes, raises an exception without advice, or its C++ part ends the process with
exit code 1. This module ends the program with one sentence and exit code 2 instead. Seconds, bytes.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from dto_pipeline.config import RunConfig
from dto_pipeline.errors import DtoError, one_line

REACH_S = 10.0  # a cluster answers within this [s]
_SOCKET_BYTES = 107  # longest path of a socket on Linux
_SOCKET_BELOW = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # as Ray names them
_PARTS = ("gcs_server", "raylet")  # processes that a local Ray cannot live without
_LOOK_S = 0.1  # how often they are checked while Ray starts [s]
_OWN_WORDS_S = 3.0  # how long Ray has to raise an error of its own when they are gone [s]
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
    "RAY_AUTH_MODE": "disabled",  # by default a local start writes a token file that breaks later clients
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run dto run` must not rebuild the environment per worker
    "RAY_DEDUP_LOGS": "0",  # equal lines of two workers are two events
}
_LOG = logging.getLogger(__name__)


class ClusterUnreachable(DtoError):
    """Ray cannot be started, or no cluster answers at the address; the message has the next step."""


def start_ray(config: RunConfig, address: str) -> None:
    """Connect this process to Ray: a fresh one on this machine (``local``) or the cluster at `address`.

    Raises: ClusterUnreachable if nothing answers within seconds, or Ray cannot start.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    local: dict[str, Any] = {}
    if address == "local":
        needed = math.ceil(max(1, config.workers) * config.cpus_per_worker)
        local = {
            # More workers than cores are slow, but must not wait for ever.
            "num_cpus": max(os.cpu_count() or 1, needed),
            "object_store_memory": 256 << 20,  # shard numbers and receipts need next to nothing
            "include_dashboard": False,
        }
        check_temporary_folder()
    else:
        check_reachable(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with watched_start(address):
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **local)
    except Exception as error:  # the door: Ray raises RuntimeError, OSError, and for a node that stays away, Exception
        what = "Ray cannot start on this machine" if address == "local" else f"--address {address}"
        raise ClusterUnreachable(f"{what}: {one_line(error)}; {start_advice(address)}") from error
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in the place, with exit code 15


def gpus_per_worker(config: RunConfig, there: int) -> float:
    """GPUs an actor asks for: as configured; else one of the GPUs `there`, or a part of one if workers are more."""
    if config.gpus_per_worker >= 0:
        return config.gpus_per_worker
    if config.device == "cpu" or there == 0:
        return float(config.device.startswith("cuda"))
    return 1 / -(-config.workers // there)


def check_reachable(address: str) -> None:
    """Refuse an address where nothing answers: Ray would try for minutes."""
    target, host, port = _resolve(address)
    if address == "auto" and not port:
        return  # Ray looks for a cluster on this machine, and raises at once if there is none
    advice = "is the cluster up, and the port right (6379 for HOST:PORT, 10001 for ray://)?"
    if not host or not port.isdecimal():
        raise ClusterUnreachable(f"--address {target}: expected local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterUnreachable(f"--address {target}: nothing listens there ({error}); {advice}") from error
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    import grpc  # comes with Ray

    with grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
        try:  # a port that only accepts connections does not answer
            grpc.channel_ready_future(channel).result(timeout=REACH_S)
        except grpc.FutureTimeoutError as error:
            raise ClusterUnreachable(
                f"--address {target}: what listens there is no Ray that answers; {advice}"
            ) from error


def check_temporary_folder() -> None:
    """Refuse a temporary folder whose path is too long for Ray's sockets."""
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    length = len(os.fsencode(os.path.abspath(folder) + _SOCKET_BELOW))
    if length > _SOCKET_BYTES:
        found = f"{name} is {folder}: Ray's sockets would have paths of {length} bytes there"
        advice = "set RAY_TMPDIR to a short folder such as /tmp"
        raise ClusterUnreachable(f"{found}, {_SOCKET_BYTES} are possible; {advice}")


def dead_parts() -> dict[int, str]:
    """Dead processes of a Ray that this process started: pid -> name."""
    found = {}
    for children in Path("/proc/self/task").glob("*/children"):  # of every thread
        with suppress(OSError):  # a thread or process that is gone, or a kernel without this file
            for pid in children.read_text().split():
                text = Path(f"/proc/{pid}/stat").read_text()
                name, state = text[text.find("(") + 1 : text.rfind(")")], text.rpartition(")")[2].split()
                if name in _PARTS and state and state[0] in "ZX":
                    found[int(pid)] = name
    return found


@contextmanager
def watched_start(address: str) -> Iterator[None]:
    """End this process with a sentence if Ray would end it without one.

    If a process of Ray dies while the driver registers, Ray's C++ part waits for a minute and then ends the driver,
    which Python cannot catch. So a thread watches these processes; when one is gone, Ray has some seconds to raise an
    error of its own.
    """
    started = threading.Event()
    earlier = dead_parts()  # of a Ray that this process used before

    def watch() -> None:
        while not started.wait(_LOOK_S if address == "local" else REACH_S):
            parts = sorted({name for pid, name in dead_parts().items() if pid not in earlier})
            if address != "local":
                _, host, port = _resolve(address)
                try:
                    if port:  # else Ray has found the cluster by itself
                        socket.create_connection((host, int(port)), REACH_S).close()
                except OSError:
                    parts = ["its head"]
            if parts and not started.wait(_OWN_WORDS_S):
                where = "on this machine" if address == "local" else f"at --address {address}"
                died = f"Ray cannot start {where}: {' and '.join(parts)} died while it did"
                print(f"dto: {died}; {start_advice(address)}", file=sys.stderr, flush=True)
                os._exit(DtoError.exit_code)

    threading.Thread(target=watch, name="ray start", daemon=True).start()
    try:
        yield
    finally:
        started.set()


def start_advice(address: str) -> str:
    """The next step if Ray does not start."""
    if address == "local":
        return "check that memory, /dev/shm and the disk of its logs have room, and start again, or use --workers 0"
    return "the cluster must be up and have this machine's versions of Ray and Python; --address local starts Ray here"


def _resolve(address: str) -> tuple[str, str, str]:
    """An address as Ray resolves it, with its host and its port."""
    target = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = target.removeprefix("ray://").partition("/")[0].rpartition(":")
    return target, host.strip("[]"), port
