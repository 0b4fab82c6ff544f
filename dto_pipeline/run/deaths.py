"""Which image ended its process: what workers note before each image, and what the driver concludes from deaths.

A process that dies takes its whole shard along. On its last attempts such a shard is worked image by image, and its
worker notes which one it is at. An image is condemned when two processes in a row died with it alone in work; one that
comes through is free of suspicion again, so chance kills condemn nobody. Where memory ran out on the machine, the image
gets another word: it may be innocent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from dto_pipeline.config import RunConfig
from dto_pipeline.data.files import json_bytes
from dto_pipeline.reading import parse_json
from dto_pipeline.run import folder as files
from dto_pipeline.run.folder import Failure, RunDirectory
from dto_pipeline.run.lease import machine_mark
from dto_pipeline.run.publish import lacks_receipt_only
from dto_pipeline.status import ImageStatus

CONDEMNED_AFTER = 2  # deaths in a row with the image alone in work; one may be chance
CONDEMNED = "the process that worked on this image alone died, twice"
SHORT_OF_MEMORY = "memory ran out on the machine while this image alone was worked on, again and again"
_MORE_ATTEMPTS = 4  # beyond max_attempts that a shard gets per image it may condemn: two, and chance kills
NOTE_SCHEMA = "dto-in-flight/1"
_IN_FLIGHT = "in-flight"  # kind of note
UNKNOWN = -1  # number of processes that were ended for want of memory
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class InFlight:
    """What a worker is about to do with a shard."""

    shard: int
    attempt: int  # this belongs to: the note of an earlier one, or of a zombie, has another
    image: str  # image_id; "" = the shard as a whole
    survived: tuple[str, ...] = ()  # images under suspicion that came through in this attempt
    driver: bool = False  # True: the process that dies is the driver's own
    machine: str = ""  # of a driver: see `lease.machine_mark`
    oom_kills: int = UNKNOWN  # of a driver's machine when the note was written


def find_condemned(failure: Failure) -> dict[str, tuple[ImageStatus, str]]:
    """Images of a shard that have killed too often -> what their row says."""
    condemned = [image for image, deaths in failure.suspects.items() if deaths >= CONDEMNED_AFTER]
    memory, died = (ImageStatus.OUT_OF_MEMORY, SHORT_OF_MEMORY), (ImageStatus.WORKER_DIED, CONDEMNED)
    return {image: memory if failure.memory.get(image) else died for image in condemned}


class Suspects:
    """The driver's book of deaths, per shard; kept in failure records, so that a later launch goes on with it."""

    def __init__(self, directory: RunDirectory, failures: Mapping[int, Failure], config: RunConfig) -> None:
        self._directory, self._config = directory, config
        self._failures = dict(failures)

    def of(self, shard: int) -> Failure:
        """What is known of a shard's failures; of none where it never failed."""
        return self._failures.get(shard) or Failure(shard, 0, False, "", "", 0.0)

    def allows_another(self, shard: int, attempt: int, out_of_memory: bool = False) -> bool:
        """An attempt ended with its process: see `decide`. Takes the note of it away."""
        note = read_note(self._directory, shard)
        clear_note(self._directory, shard)
        return self.decide(shard, attempt, note, out_of_memory)

    def decide(self, shard: int, attempt: int, note: InFlight | None, out_of_memory: bool = False) -> bool:
        """Whether another attempt leads somewhere: one image alone was in work, or only the receipt is missing."""
        failure = replace(self.of(shard), deaths=self.of(shard).deaths + 1)
        self._failures[shard] = failure
        some_left = attempt < self._config.max_attempts + _MORE_ATTEMPTS * self._config.max_poison_images
        if lacks_receipt_only(self._directory, shard):
            return some_left
        if note is None or note.attempt != attempt or not note.image:
            return False
        suspects, memory = (
            {image: deaths for image, deaths in counts.items() if image not in note.survived}
            for counts in (failure.suspects, failure.memory)
        )
        suspects[note.image] = suspects.get(note.image, 0) + 1
        if out_of_memory:
            memory[note.image] = memory.get(note.image, 0) + 1
        self._failures[shard] = replace(failure, suspects=suspects, memory=memory)
        return some_left and len(find_condemned(self._failures[shard])) <= self._config.max_poison_images


def find_suspicion(directory: RunDirectory, shard: int, attempt: int, max_attempts: int) -> Failure | None:
    """What a worker is to mind in this attempt; None = work as usual. Only last attempts are worked one by one."""
    if attempt < max_attempts or attempt < 2:
        return None
    failure = files.read_shard_failure(directory, shard)
    return failure if failure is not None and failure.deaths else None


def work_one_by_one(
    images: Sequence[str],
    failure: Failure,
    work: Callable[[int], _Row],
    note: Callable[[str, tuple[str, ...]], None],
) -> dict[int, _Row]:
    """Work on one image after the other, those under suspicion first: if one kills again, little is lost.

    `work` does the image at a position; `note` is told before each which one it is, and the suspects that came through
    so far. Returns what `work` gave, per position; without the condemned.
    """
    suspects, condemned = failure.suspects, find_condemned(failure)
    done: dict[int, _Row] = {}
    survived: list[str] = []
    for position in sorted(range(len(images)), key=lambda position: (-suspects.get(images[position], 0), position)):
        image = images[position]
        if image not in condemned:
            note(image, tuple(survived))
            done[position] = work(position)
            survived += [image] if image in suspects else []
    return done


def note_name(shard: int) -> str:
    """Where the note of a shard's worker lies in the run's folder."""
    return files.failure_name(shard, _IN_FLIGHT)


def write_note(directory: RunDirectory, note: InFlight) -> None:
    """Write down what a worker is at, before it begins with it."""
    if note.driver:  # nobody watches it: whether memory ran out is for the next launch to find
        note = replace(note, machine=machine_mark(), oom_kills=oom_kills())
    directory.store.replace(note_name(note.shard), json_bytes({"schema": NOTE_SCHEMA, **asdict(note)}))


def clear_note(directory: RunDirectory, shard: int) -> None:
    """Nobody is at the shard any more."""
    directory.store.remove(note_name(shard))


def read_note(directory: RunDirectory, shard: int) -> InFlight | None:
    """The note of a shard's worker; None where there is none, or one that means nothing."""
    try:
        found = dict(parse_json(directory.store.read(note_name(shard))))
        if found.pop("schema") != NOTE_SCHEMA:
            return None
        return InFlight(**{**found, "survived": tuple(found.get("survived", ()))})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def charge_own_deaths(directory: RunDirectory, config: RunConfig, now: float) -> list[Failure]:
    """Charge the shards that an earlier driver without workers died at, and return their failures. Under the lock.

    Notes of workers (whose driver died, not they) are taken away.
    """
    charged = {failure.shard: failure for failure in find_own_deaths(directory, config, now)}
    for shard in files.find_notes(directory, _IN_FLIGHT):
        # the note goes first: who is killed in between leaves a death uncharged, never one charged twice
        clear_note(directory, shard)
        if shard in charged:
            files.record_failure(directory, charged[shard])
    return list(charged.values())


def find_own_deaths(directory: RunDirectory, config: RunConfig, now: float) -> list[Failure]:
    """The failures that `charge_own_deaths` would write; writes nothing."""
    charged = []
    for shard in files.find_notes(directory, _IN_FLIGHT):
        note = read_note(directory, shard)
        if note is None or not note.driver:
            continue
        earlier = files.read_shard_failure(directory, shard) or Failure(shard, 0, False, "", "", 0.0)
        suspects, attempts = Suspects(directory, {shard: earlier}, config), earlier.attempts + 1
        memory = note.machine == machine_mark() and has_grown(note.oom_kills, oom_kills())
        another = suspects.decide(shard, attempts, note, memory)
        given_up = attempts >= config.max_attempts and not another
        died = "the driver's process died"
        if memory:
            died = "memory ran out on this machine and the driver's process was ended"
        error = f"{died} at this shard{f', image {note.image}' if note.image else ''}"
        now_known = replace(suspects.of(shard), attempts=attempts, given_up=given_up, error=error, detail="")
        charged.append(replace(now_known, worker="this process", failed_at=now))
    return charged


def oom_kills() -> int:
    """Processes ended for want of memory since the machine, or this container, came up; `UNKNOWN` = not told.

    A process that the kernel's out-of-memory killer ends looks like one that crashed; the counter tells them apart. The
    container's own is asked first: the machine's also counts those of others.
    """
    for path in (*_own_counters(), Path("/proc/vmstat")):
        with suppress(OSError, ValueError, KeyError):
            return int(dict(line.split() for line in path.read_text().splitlines())["oom_kill"])
    return UNKNOWN


def has_grown(before: int, now: int) -> bool:
    """True if a process was ended for want of memory between two counts."""
    return UNKNOWN < before < now


def _own_counters() -> list[Path]:
    """Where cgroups of version 2 and 1 count, for the group that this process is in."""
    groups: dict[str, str] = {}
    with suppress(OSError):
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        groups = {kinds: below.lstrip("/") for _, kinds, below in lines}
    kinds = {"": "memory.events", "memory": "memory.oom_control"}
    return [Path("/sys/fs/cgroup", kind, groups[kind], name) for kind, name in kinds.items() if kind in groups]
