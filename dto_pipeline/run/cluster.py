"""What a start of Ray needs, looked at before Ray itself is asked: an address that answers, a short place for sockets.

Ray says little, or nothing, when it cannot start: it waits for minutes, raises a bare exception, or ends the process
from its C++ part, with exit code 1 and without a word of ours. Here that becomes one sentence. Does not import Ray.
Seconds, bytes.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dto_pipeline.errors import DtoError

REACH_S = 10.0  # a cluster that is there answers within this [s]
_SOCKET_BYTES = 107  # a socket's path may have so many, says Linux
_SOCKET_BELOW = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # as Ray names them
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_PARTS = ("gcs_server", "raylet")  # processes that a local Ray cannot live without
_LOOK_S = 0.1  # how often they are looked at while Ray starts [s]
_OWN_WORDS_S = 3.0  # how long Ray has to say by itself that they are gone [s]
_EXIT_CODE = DtoError.exit_code


class ClusterUnreachable(DtoError):
    """Ray cannot be started, or no cluster answers at the address; the message says what to try."""


def check_reachable(address: str) -> None:
    """Refuse an address where nothing answers: Ray itself would try for minutes."""
    target = _resolved(address)
    host, port = _host_and_port(target)
    if address == "auto" and not port:
        return  # Ray looks for processes of a cluster on this machine, and says at once if there are none
    advice = "is the cluster up, and the port right (6379 for HOST:PORT, 10001 for ray://)?"
    if not host or not port.isdecimal():
        raise ClusterUnreachable(f"--address {target}: expected local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterUnreachable(f"--address {target}: nothing listens there ({error}); {advice}") from error
    if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_grpc(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    ):
        raise ClusterUnreachable(f"--address {target}: what listens there is no Ray that answers; {advice}")


def short_place() -> str | None:
    """Where Ray is to keep its sockets and logs, as TMPDIR is too long for sockets; None = Ray's own choice will do.

    Raises:
        ClusterUnreachable: RAY_TMPDIR, which is somebody's own choice, is too long; or there is no short folder.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    folder = chosen or tempfile.gettempdir()
    length = len(os.fsencode(os.path.abspath(folder) + _SOCKET_BELOW))
    if length <= _SOCKET_BYTES:
        return None
    found = f"{folder}: Ray's sockets would have paths of {length} bytes there, {_SOCKET_BYTES} are possible"
    if chosen:
        raise ClusterUnreachable(f"RAY_TMPDIR is {found}; set RAY_TMPDIR to a short folder such as /tmp")
    for short in map(Path, _SHORT_FOLDERS):
        place = short / f"dto-ray-{os.getuid()}"
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            if place.lstat().st_uid == os.getuid() and not place.is_symlink() and os.access(place, os.W_OK):
                place.chmod(0o700)
                return str(place / "ray")  # which Ray opens to everybody
        except OSError:
            continue
    raise ClusterUnreachable(
        f"TMPDIR is {found}, and {_SHORT_FOLDERS} cannot be written; set RAY_TMPDIR to a short one"
    )


def dead_parts() -> dict[int, str]:
    """Parts of a Ray that this process started which have died: pid -> name."""
    found = {}
    for children in Path("/proc/self/task").glob("*/children"):  # of every thread
        for pid in _read(children).split():
            text = _read(Path(f"/proc/{pid}/stat"))
            name, state = text[text.find("(") + 1 : text.rfind(")")], text.rpartition(")")[2].split()
            if name in _PARTS and state and state[0] in "ZX":
                found[int(pid)] = name
    return found


def _read(path: Path) -> str:
    """Text of a file of /proc; "" where the process is gone, or the kernel does not tell."""
    try:
        return path.read_text()
    except OSError:
        return ""


@contextmanager
def watched_start(address: str) -> Iterator[None]:
    """While Ray starts, end this process with a sentence where Ray would end it without one.

    Where a part of Ray dies while the driver registers, Ray's C++ part waits for a minute and then ends the process
    with exit code 1, which nothing in Python can catch. So a thread looks at these parts; once one is gone, Ray has
    some seconds to raise an error of its own.
    """
    started = threading.Event()
    earlier = dead_parts()  # of a Ray that this process ended before

    def watch() -> None:
        while not started.wait(_LOOK_S if address == "local" else REACH_S):
            parts = sorted({name for pid, name in dead_parts().items() if pid not in earlier})
            if address != "local" and _is_gone(_resolved(address)):
                parts = ["its head"]
            if parts and not started.wait(_OWN_WORDS_S):
                _end_process(address, parts)

    thread = threading.Thread(target=watch, name="ray start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        started.set()


def start_advice(address: str) -> str:
    """What to try where Ray does not start."""
    if address == "local":
        return "see that memory, /dev/shm and the disk of its logs have room, and start again, or use --workers 0"
    return "the cluster must be up and have this machine's versions of Ray and Python; --address local starts Ray here"


def _end_process(address: str, parts: list[str]) -> None:
    where = "on this machine" if address == "local" else f"at --address {address}"
    sentence = f"Ray cannot start {where}: {' and '.join(parts)} died while it did; {start_advice(address)}"
    print(f"dto: {sentence}", file=sys.stderr, flush=True)
    os._exit(_EXIT_CODE)


def _is_gone(target: str) -> bool:
    host, port = _host_and_port(target)
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except ValueError:
        return False  # Ray has found the cluster by itself
    except OSError:
        return True
    return False


def _resolved(address: str) -> str:
    return os.environ.get("RAY_ADDRESS", "") if address == "auto" else address  # as Ray resolves it


def _host_and_port(target: str) -> tuple[str, str]:
    host, _, port = target.removeprefix("ray://").partition("/")[0].rpartition(":")
    return host.strip("[]"), port


def _speaks_grpc(target: str) -> bool:
    """True if a server of Ray's protocol answers; a port that only accepts connections does not."""
    import grpc  # comes with Ray

    with grpc.insecure_channel(target) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=REACH_S)
            return True
        except grpc.FutureTimeoutError:
            return False
