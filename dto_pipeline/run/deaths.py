"""Find the image that kills its worker: workers note the image they begin, the driver counts deaths per image.

A worker that dies loses its whole shard. On its last attempts such a shard is done image by image. An image during
which two workers in a row died is left out, with a row that says so. The count of an image that is finished goes back
to zero, so random kills leave out no image. If the machine ran out of memory the row names memory: the image may not be
the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from dto_pipeline.config import RunConfig
from dto_pipeline.data.files import json_bytes
from dto_pipeline.reading import parse_json
from dto_pipeline.run.folder import Failure, RunDirectory, failure_name, read_shard_failure
from dto_pipeline.status import ImageStatus

DEADLY_AFTER = 2  # deaths in a row while the image alone was worked on; one may be chance
KILLED = "the process that worked on this image alone died, twice"
SHORT_OF_MEMORY = "memory ran out on the machine while this image alone was worked on, again and again"
_MORE_ATTEMPTS = 4  # beyond max_attempts that a shard gets per deadly image: two, and random kills
NOTE_SCHEMA = "dto-in-flight/1"
UNKNOWN = -1  # number of processes that were ended for lack of memory
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class InFlight:
    """Note of a worker that does a shard image by image."""

    shard: int
    attempt: int  # a note with another number is of an earlier attempt
    image: str  # image_id of the image it begins
    survived: tuple[str, ...] = ()  # images with earlier deaths that came through in this attempt


def find_deadly(failure: Failure) -> dict[str, tuple[ImageStatus, str]]:
    """Images of a shard that ended too many processes -> status and message of their row."""
    deadly = [image for image, deaths in failure.suspects.items() if deaths >= DEADLY_AFTER]
    memory, died = (ImageStatus.OUT_OF_MEMORY, SHORT_OF_MEMORY), (ImageStatus.WORKER_DIED, KILLED)
    return {image: memory if failure.memory.get(image) else died for image in deadly}


def count_death(
    directory: RunDirectory, failure: Failure, attempt: int, out_of_memory: bool, config: RunConfig
) -> tuple[Failure, bool]:
    """Count an attempt at a shard that ended with its process, and remove the worker's note.

    Returns:
        The shard's failure record, and whether one more attempt makes progress: a single image was in work.
    """
    note = read_note(directory, failure.shard)
    clear_note(directory, failure.shard)
    failure = replace(failure, deaths=failure.deaths + 1)
    if note is None or note.attempt != attempt or not note.image:
        return failure, False
    suspects, memory = (
        {image: deaths for image, deaths in counts.items() if image not in note.survived}
        for counts in (failure.suspects, failure.memory)
    )
    for counts in (suspects, memory) if out_of_memory else (suspects,):
        counts[note.image] = counts.get(note.image, 0) + 1
    failure = replace(failure, suspects=suspects, memory=memory)
    most = config.max_attempts + _MORE_ATTEMPTS * config.max_poison_images
    return failure, attempt < most and len(find_deadly(failure)) <= config.max_poison_images


def find_earlier_deaths(directory: RunDirectory, shard: int, attempt: int, max_attempts: int) -> Failure | None:
    """The failure record if this attempt is to go image by image: a last attempt at a shard whose process died."""
    if attempt < max(2, max_attempts):
        return None
    failure = read_shard_failure(directory, shard)
    return failure if failure is not None and failure.deaths else None


def work_one_by_one(
    directory: RunDirectory,
    failure: Failure,
    attempt: int,
    images: Sequence[str],
    work: Callable[[int], _Row],
    leave_out: Callable[[int, ImageStatus, str], _Row],
) -> list[_Row]:
    """Do the images of a shard one by one with a note of each, those with earlier deaths first.

    Args:
        work: makes the row at a position.
        leave_out: makes the row of a deadly image with its status and message.
    """
    suspects, deadly = failure.suspects, find_deadly(failure)
    rows: dict[int, _Row] = {}
    survived: tuple[str, ...] = ()
    for position in sorted(range(len(images)), key=lambda position: (-suspects.get(images[position], 0), position)):
        image = images[position]
        if image in deadly:
            rows[position] = leave_out(position, *deadly[image])
            continue
        write_note(directory, InFlight(failure.shard, attempt, image, survived))
        rows[position] = work(position)
        survived += (image,) if image in suspects else ()
    return [rows[position] for position in range(len(images))]


def note_name(shard: int) -> str:
    """Name of a shard's in-flight note below the run's folder."""
    return failure_name(shard, "in-flight")


def write_note(directory: RunDirectory, note: InFlight) -> None:
    """Write the note of a worker before it begins an image."""
    directory.store.replace(note_name(note.shard), json_bytes({"schema": NOTE_SCHEMA, **asdict(note)}))


def clear_note(directory: RunDirectory, shard: int) -> None:
    """Remove the note of a shard, if there is one."""
    directory.store.remove(note_name(shard))


def read_note(directory: RunDirectory, shard: int) -> InFlight | None:
    """The note of a shard; None where there is none or it cannot be read."""
    try:
        found = dict(parse_json(directory.store.read(note_name(shard))))
        if found.pop("schema") != NOTE_SCHEMA:
            return None
        return InFlight(**{**found, "survived": tuple(found.get("survived", ()))})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def oom_kills() -> int:
    """Processes ended for lack of memory since the machine, or this container, came up; `UNKNOWN` if not counted.

    A process that the kernel's out-of-memory killer ends looks like one that crashed; only the counter differs. The
    container's own counter comes first, as the machine's also counts other containers. Cgroups of version 2 and 1 have
    different files.
    """
    groups: dict[str, str] = {}
    with suppress(OSError):
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        groups = {kinds: below.lstrip("/") for _, kinds, below in lines}
    files = {"": "memory.events", "memory": "memory.oom_control"}
    own = [Path("/sys/fs/cgroup", kind, groups[kind], name) for kind, name in files.items() if kind in groups]
    for path in (*own, Path("/proc/vmstat")):
        with suppress(OSError, ValueError, KeyError):
            return int(dict(line.split() for line in path.read_text().splitlines())["oom_kill"])
    return UNKNOWN
