"""One run that a scenario disturbs: its starts, its dead, its resumes, and what is to be said about it at the end.

Knows the command line of `dto run`, its exit codes and the files of the run's folder; nothing of the engine inside.
Leaves no process and no mount behind, however the scenario ends. Seconds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dto_pipeline.config import RunConfig
from tests.chaos.arena import ANY_FAILURES, Arena, ChaosError, dto_command
from tests.chaos.faults import SLEEP, Fault, arm_environment
from tests.chaos.judge import find_differences
from tests.chaos.mounts import MountedFolder
from tests.chaos.processes import Kind, MarkedProcess, end_marked, find_marked, mark_environment

PATIENCE_S = 300.0  # one start of a small run, on a machine that is busy with other things
_LINGER_S = 30.0  # so long may Ray's processes take to follow a driver that ended
_MAX_RESUMES = 8  # a run that needs more does not get done
_PATIENT_RESUME_S = 2.0  # more between every two resumes: who holds a run may need time to be seen as dead
_RAY = {
    "RAY_AUTH_MODE": "disabled",  # this and the next as the engine sets them for itself
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "1000",  # Ray notices the death of a node in seconds instead of a quarter minute
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class Start:
    """One start of `dto run`."""

    process: subprocess.Popen[bytes]
    log: Path  # stdout and stderr

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")


def slow_images(seconds: float) -> Fault:
    """Every image takes its time, so that there is a middle to disturb."""
    return Fault("/images/", SLEEP, seconds=seconds)


class DisturbedRun:
    """Context manager around one run folder; `complaints` fill up with what ought not to have been."""

    def __init__(self, arena: Arena, name: str, seed: int = 0, kills: int = 0, until: float = float("inf")) -> None:
        """`seed`, `kills`, `until`: of scenarios that kill at random; `until` on the monotonic clock."""
        self.arena, self.name = arena, name
        self.dice, self.kills_wanted, self.until = random.Random(seed), kills, until
        self.home = arena.scratch / name
        self.folder = self.home / "run"
        self.kills = self.resumes = 0
        self.complaints: list[str] = []
        self.note = ""  # how a disturbance was made, where there is more than one way
        self.retry: tuple[str, ...] = ("--retry-failed",)  # options of resumes
        self.resume_workers = arena.workers
        self._mark = uuid.uuid4().hex
        self._starts = 0
        self._mounted: MountedFolder | None = None
        self._cleanup = ExitStack()
        self._ray_tmp = ""

    def __enter__(self) -> DisturbedRun:
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        self._ray_tmp = tempfile.mkdtemp(prefix="dtoc")  # short: names of sockets end after 107 bytes
        self._cleanup.callback(shutil.rmtree, self._ray_tmp, ignore_errors=True)
        self._cleanup.callback(end_marked, self._mark)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    @property
    def view(self) -> Path:
        """The run's folder as its processes see it."""
        return self.folder if self._mounted is None else self._mounted.view

    @property
    def environment(self) -> dict[str, str]:
        """Of every process of this run, faults not included."""
        ray = {**_RAY, "RAY_TMPDIR": self._ray_tmp}
        return {**os.environ, **mark_environment(self._mark), **ray, "OMP_NUM_THREADS": "1"}

    def armed(self, faults: Sequence[Fault], clock: Path | None = None) -> dict[str, str]:
        """`environment` with faults planted, for one start."""
        self._starts += 1
        return {**self.environment, **arm_environment(self.home / f"faults-{self._starts}", faults, clock)}

    def start(
        self,
        *options: str,
        workers: int | None = None,
        faults: Sequence[Fault] = (),
        clock: Path | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> Start:
        """Start `dto run` and come back at once.

        Args:
            options: further options of the command line.
            workers: None = the arena's.
            faults, clock: see `arm_environment`.
            prepare: called in the new process before it becomes `dto`.
        """
        workers = self.arena.workers if workers is None else workers
        command = dto_command(
            *("run", self.arena.manifest, "-o", self.folder, "--workers", str(workers), "--quiet"),
            *(*ANY_FAILURES, *options),
        )
        prefix = [] if self._mounted is None else self._mounted.prefix
        environment = self.armed(faults, clock)
        log = self.home / f"start-{self._starts}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*prefix, *command],
                stdout=sink,
                stderr=sink,
                env=environment,
                start_new_session=True,
                preexec_fn=prepare,
            )
        return Start(process, log)

    def finish(self, start: Start) -> int:
        """Exit code of a start.

        Raises:
            ChaosError: it does not end.
        """
        try:
            return start.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise ChaosError(f"dto run did not end within {PATIENCE_S:.0f} s; {_last_words(start)}") from error

    def expect_exit(self, start: Start, code: int) -> None:
        """Wait for a start; another exit code is complained about."""
        found = self.finish(start)
        self.expect(found == code, f"exit code {found} instead of {code}; {_last_words(start)}")

    def expect(self, holds: bool, complaint: str) -> None:
        if not holds:
            self.complaints.append(complaint)

    def wait_until(self, condition: Callable[[], object], what: str, start: Start | None = None) -> None:
        """Wait until `condition` is true; raises ChaosError where `start` ends before, or patience does."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if start is not None and not start.alive:
                raise ChaosError(f"the driver ended before {what}; {_last_words(start)}")
            if time.monotonic() > deadline:
                raise ChaosError(f"waited {PATIENCE_S:.0f} s in vain for {what}")
            time.sleep(0.05)

    def wait_for_receipts(self, count: int, start: Start) -> None:
        self.wait_until(lambda: self.receipts_there >= count, f"receipt number {count}", start)

    @property
    def receipts_there(self) -> int:
        """How many; 0 where there is no folder yet."""
        return len(list((self.view / "receipts").glob("shard-*.json")))

    @property
    def deaths_by_faults(self) -> int:
        """Processes of the last start that ended themselves at a planted fault."""
        return len(list((self.home / f"faults-{self._starts}").glob("fault-*")))

    @property
    def shards_done_image_by_image(self) -> int:
        """Finished shards whose earlier attempts had ended with their process: the last ones go image by image."""
        receipts = (json.loads(path.read_bytes()) for path in (self.view / "receipts").glob("shard-*.json"))
        return sum(receipt["attempt"] >= RunConfig.max_attempts for receipt in receipts)

    def processes(self, kind: Kind | None = None) -> list[MarkedProcess]:
        """Live processes of this run."""
        return find_marked(self._mark, kind)

    def kill(self, kind: Kind, number: signal.Signals = signal.SIGKILL) -> MarkedProcess | None:
        """Send a signal to one process of a kind, chosen at random; None if there is none."""
        victims = self.processes(kind)
        victim = self.dice.choice(victims) if victims else None
        if victim is None or not victim.send(number):
            return None
        self.kills += 1
        return victim

    def mount(self, script: str) -> MountedFolder:
        """Mount something on the run's folder, for the run's processes only, until `unmount` or the end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mounted = self._cleanup.enter_context(MountedFolder(self.folder, script, self.environment))
        return self._mounted

    def unmount(self) -> None:
        """From now on the folder is the plain one again."""
        self._mounted = None

    def copy_finished(self) -> None:
        """Let the run's folder be that of the undisturbed run, finished."""
        shutil.copytree(self.arena.calm, self.folder)

    def resume(self) -> None:
        """Start again until every shard is done."""
        for turn in range(_MAX_RESUMES):
            time.sleep(turn * _PATIENT_RESUME_S)
            self.resumes += 1
            start = self.start(*self.retry, workers=self.resume_workers)
            if self.finish(start) == 0:
                break
        else:
            raise ChaosError(f"not done after {_MAX_RESUMES} resumes; {_last_words(start)}")

    def judge(self) -> None:
        """Complain about everything that tells the finished run from the undisturbed one."""
        deadline = time.monotonic() + _LINGER_S
        while (left := self._survivors()) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.expect(not left, f"{len(left)} processes outlive their driver: {left}")
        self.complaints += find_differences(self.view, self.arena.undisturbed)

    @property
    def wants_kills(self) -> bool:
        """Whether there is time, and reason, for another random kill."""
        return self.kills < self.kills_wanted and time.monotonic() < self.until

    def begin_anew(self) -> None:
        """Take the run's folder away, for another round."""
        shutil.rmtree(self.folder)

    def _survivors(self) -> list[MarkedProcess]:
        """Processes that could still write labels; Ray's agents take minutes to see that their raylet is gone."""
        return [process for process in self.processes() if process.kind is not Kind.OTHER]


def _last_words(start: Start) -> str:
    words = " ".join(start.output().split())[-600:]
    return f"its last words: {words}" if words else "it said nothing"
