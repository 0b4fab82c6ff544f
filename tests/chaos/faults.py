"""What goes wrong inside a disturbed process: a file that kills whoever opens it, a call that hangs, a wrong clock.

Works through Python's audit events and `time.time` alone, so no product code knows of it: `arm_environment` puts a
`sitecustomize` on the PYTHONPATH of a process and of all it starts (Ray's workers too), which calls `install`. C++ code
(pyarrow, the kernel's file times, the monotonic clock) is not reached. Imports the standard library only, because
every Python process of a disturbed run loads it. Seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIE, SLEEP, RAISE = "die", "sleep", "raise"
FAULTS, COUNTS, CLOCK = "DTO_CHAOS_FAULTS", "DTO_CHAOS_COUNTS", "DTO_CHAOS_CLOCK"
_ROOT = Path(__file__).parents[2]  # where `tests` can be imported from; last on the path, so that nothing is hidden
_SITECUSTOMIZE = f"""\
import sys

sys.path.append({str(_ROOT)!r})
from tests.chaos.faults import install

install()
"""


class InjectedFault(RuntimeError):
    """What a fault of kind `RAISE` raises."""


@dataclass(frozen=True)
class Fault:
    """Something that happens when a process touches a path."""

    path: str  # part of the path
    kind: str  # DIE: SIGKILL to itself; SLEEP: for `seconds`; RAISE: InjectedFault
    events: tuple[str, ...] = ("open",)  # audit events of Python: open, os.link, os.rename ...
    times: int = 0  # happens this often, all processes together; 0 = always
    seconds: float = 0.0


def arm_environment(folder: Path, faults: Sequence[Fault], clock: Path | None = None) -> dict[str, str]:
    """Environment variables that plant `faults` into a process and its children.

    Args:
        folder: scratch of this start; gets the sitecustomize and the counters of `Fault.times`.
        clock: file that holds what is added to the wall clock [s]; may be rewritten at any time. None = the true time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    path = os.pathsep.join(part for part in (str(folder), os.environ.get("PYTHONPATH", "")) if part)
    armed = {
        "PYTHONPATH": path,
        FAULTS: json.dumps([dataclasses.asdict(fault) for fault in faults]),
        COUNTS: str(folder),
    }
    return armed if clock is None else {**armed, CLOCK: str(clock)}


def install() -> None:
    """Plant what the environment asks for into this process; an audit hook cannot be taken out again."""
    faults = [Fault(**fault) for fault in json.loads(os.environ.get(FAULTS, "[]"))]
    if faults:
        sys.addaudithook(_Hook(faults, os.environ[COUNTS]))
    if CLOCK in os.environ:
        _shift_clock(os.environ[CLOCK])


class _Hook:
    """Audit hook; must be quick for the many events that are nobody's business."""

    def __init__(self, faults: Sequence[Fault], counts: str) -> None:
        self._faults, self._counts = list(faults), counts
        self._events = {event for fault in faults for event in fault.events}

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in self._events:
            return
        paths = [os.fsdecode(value) for value in arguments if isinstance(value, str | bytes | os.PathLike)]
        for number, fault in enumerate(self._faults):
            hit = event in fault.events and any(fault.path in path for path in paths)
            if hit and (fault.times == 0 or self._count(number, fault.times)):
                _happen(fault)

    def _count(self, number: int, times: int) -> bool:
        """True for the first `times` callers of all processes: each takes a file that nobody else can take."""
        for turn in range(times):
            try:
                os.close(os.open(f"{self._counts}/fault-{number}-{turn}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False


def _happen(fault: Fault) -> None:
    if fault.kind == SLEEP:
        time.sleep(fault.seconds)
    elif fault.kind == DIE:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise InjectedFault(f"touching {fault.path} was made to fail")


def _shift_clock(file: str) -> None:
    """Add the number in `file` to what this process believes to be the time of day."""
    true_time, true_time_ns = time.time, time.time_ns

    def offset() -> float:
        with open(file) as stream:
            return float(stream.read() or 0)

    time.time = lambda: true_time() + offset()
    time.time_ns = lambda: true_time_ns() + int(offset() * 1e9)
