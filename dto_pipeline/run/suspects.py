"""Which image ended its process: what workers note before each image, and what the driver concludes from deaths.

An exception costs its own image; a process that dies (a crash in a decoder, memory that ran out) takes its whole shard
along. On its last tries such a shard is worked image by image, and its worker notes which one is in hand. An image is
condemned when two processes in a row died with it alone in hand; one that comes through is free of suspicion again, so
chance kills condemn nobody. Where memory ran out on the machine, the image gets another word: it may be innocent.
Knows the notes and the tries of shards, no pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from dto_pipeline.config import RunConfig
from dto_pipeline.data.files import json_bytes
from dto_pipeline.reading import parse_json
from dto_pipeline.run import directory as files
from dto_pipeline.run.directory import RunDirectory
from dto_pipeline.run.lease import machine_mark
from dto_pipeline.run.memory import UNKNOWN, has_grown, oom_kills
from dto_pipeline.run.receipt import Failure
from dto_pipeline.status import ImageStatus

CONDEMNED_AFTER = 2  # deaths in a row with the image alone in hand; one may be chance
CONDEMNED = "the process that worked on this image alone died, twice"
SHORT_OF_MEMORY = "memory ran out on the machine while this image alone was worked on, again and again"
_SPARED_TRIES = 4  # tries beyond max_attempts that a shard gets per image it may condemn: two, and chance kills
HAND_SCHEMA = "dto-hand/1"
_OWN_DEATH = {
    False: "the driver's process died",
    True: "memory ran out on this machine and the driver's process was ended",
}
_HAND_RECORD = re.compile(r"shard-(\d{5,})\.hand\.json")
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Hand:
    """What a worker is about to do with a shard."""

    shard: int
    attempt: int  # the try this belongs to: the note of an earlier try, or of a zombie, has another
    image: str  # image_id; "" = the shard as a whole
    survived: tuple[str, ...] = ()  # images under suspicion that came through in this try
    driver: bool = False  # True: the process that dies is the driver's own
    machine: str = ""  # of a driver: see `lease.machine_mark`
    oom_kills: int = UNKNOWN  # of a driver's machine when the note was written, see `run.memory`


@dataclass
class Suspicion:
    """What deaths say about one shard."""

    deaths: int = 0  # tries that ended with their process
    images: dict[str, int] = field(default_factory=dict)  # image_id -> deaths in a row with it alone in hand
    memory: dict[str, int] = field(default_factory=dict)  # image_id -> those of them for which memory ran out

    @property
    def condemned(self) -> frozenset[str]:
        return frozenset(image for image, deaths in self.images.items() if deaths >= CONDEMNED_AFTER)

    def verdict(self, image: str) -> tuple[ImageStatus, str]:
        """What the row of a condemned image says."""
        if self.memory.get(image, 0):
            return ImageStatus.OUT_OF_MEMORY, SHORT_OF_MEMORY
        return ImageStatus.WORKER_DIED, CONDEMNED


class Suspects:
    """The driver's book of suspicions, per shard; kept in failure records, so that a later start goes on with it."""

    def __init__(self, directory: RunDirectory, failures: Mapping[int, Failure], config: RunConfig) -> None:
        self._directory, self._config = directory, config
        self._shards = {shard: _suspicion(failure) for shard, failure in failures.items()}

    def of(self, shard: int) -> Suspicion:
        return self._shards.setdefault(shard, Suspicion())

    def excuse(self, shard: int, attempt: int, out_of_memory: bool = False) -> bool:
        """A try ended with its process: True when another try leads somewhere. Takes the note of it away."""
        self._directory.check_lock()  # the note may be one for the next driver to read
        hand = read_hand(self._directory, shard)
        clear_hand(self._directory, shard)
        return self.judge(shard, attempt, hand, out_of_memory)

    def judge(self, shard: int, attempt: int, hand: Hand | None, out_of_memory: bool = False) -> bool:
        """`excuse` with the note at hand.

        Another try leads somewhere when a single image was in hand, or when the labels lie there and only their
        receipt is missing.
        """
        suspicion = self.of(shard)
        suspicion.deaths += 1
        tries_left = attempt < self._config.max_attempts + _SPARED_TRIES * self._config.max_poison_images
        if files.lacks_receipt_only(self._directory, shard):
            return tries_left
        if hand is None or hand.attempt != attempt or not hand.image:
            return False
        for image in hand.survived:
            suspicion.images.pop(image, None)
            suspicion.memory.pop(image, None)
        suspicion.images[hand.image] = suspicion.images.get(hand.image, 0) + 1
        if out_of_memory:
            suspicion.memory[hand.image] = suspicion.memory.get(hand.image, 0) + 1
        return tries_left and len(suspicion.condemned) <= self._config.max_poison_images


def find_suspicion(directory: RunDirectory, shard: int, attempt: int, max_attempts: int) -> Suspicion | None:
    """What a worker is to mind in this try; None = work as usual. Only last tries of a shard are worked one by one."""
    if attempt < max_attempts or attempt < 2:
        return None
    failure = files.read_shard_failure(directory, shard)
    return _suspicion(failure) if failure is not None and failure.deaths else None


def _suspicion(failure: Failure) -> Suspicion:
    return Suspicion(failure.deaths, dict(failure.suspects), dict(failure.memory))


def work_one_by_one(
    images: Sequence[str],
    suspicion: Suspicion,
    work: Callable[[int], _Row],
    note: Callable[[str, tuple[str, ...]], None],
) -> dict[int, _Row]:
    """Work on one image after the other, those under suspicion first: if one kills again, little is lost.

    Args:
        images: image_id of each.
        suspicion: of their shard; condemned images are left out.
        work: does the image at a position.
        note: called before each with its image_id and the suspects that came through so far.

    Returns:
        What `work` gave, per position; without the condemned.
    """
    suspected = suspicion.images
    order = sorted(range(len(images)), key=lambda position: (-suspected.get(images[position], 0), position))
    done: dict[int, _Row] = {}
    survived: list[str] = []
    for position in order:
        image = images[position]
        if image in suspicion.condemned:
            continue
        note(image, tuple(survived))
        done[position] = work(position)
        if image in suspected:
            survived.append(image)
    return done


def hand_name(shard: int) -> str:
    """Where the note of a shard's worker lies in the run's folder."""
    return f"{files.FAILURES}/{files.shard_name(shard)}.hand.json"


def write_hand(directory: RunDirectory, hand: Hand) -> None:
    """Write down what a worker has in hand, before it begins with it."""
    if hand.driver:  # nobody watches it: whether memory ran out is for the next start to find
        hand = replace(hand, machine=machine_mark(), oom_kills=oom_kills())
    directory.store.replace(hand_name(hand.shard), json_bytes({"schema": HAND_SCHEMA, **asdict(hand)}))


def clear_hand(directory: RunDirectory, shard: int) -> None:
    """Nothing of the shard is in hand any more."""
    directory.store.remove(hand_name(shard))


def read_hand(directory: RunDirectory, shard: int) -> Hand | None:
    """The note of a shard's worker; None where there is none, or one that means nothing."""
    try:
        found = parse_json(directory.store.read(hand_name(shard)))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("schema") != HAND_SCHEMA:
        return None
    values: dict[str, Any] = {name: value for name, value in found.items() if name != "schema"}
    try:
        return Hand(**{**values, "survived": tuple(values.get("survived", ()))})
    except TypeError:
        return None  # of another version


def charge_own_deaths(directory: RunDirectory, config: RunConfig, now: float) -> list[Failure]:
    """At the start of a run without workers: charge the shards that an earlier driver died at. Under the lock.

    Returns:
        The failures that were written. Notes of workers (whose driver died, not they) are taken away.
    """
    charged = {failure.shard: failure for failure in find_own_deaths(directory, config, now)}
    for shard in _shards_in_hand(directory):
        directory.check_lock()  # before each: whoever took over may have noted the shard, and the name is the same
        # the note goes first: who is killed in between leaves a death uncharged, never one charged twice
        clear_hand(directory, shard)
        if shard in charged:
            files.record_failure(directory, charged[shard])
    return list(charged.values())


def find_own_deaths(directory: RunDirectory, config: RunConfig, now: float) -> list[Failure]:
    """The failures that `charge_own_deaths` would write; writes nothing."""
    charged = []
    for shard in _shards_in_hand(directory):
        hand = read_hand(directory, shard)
        if hand is None or not hand.driver:
            continue
        earlier = files.read_shard_failure(directory, shard) or Failure(shard, 0, False, "", "", 0.0)
        suspects, attempts = Suspects(directory, {shard: earlier}, config), earlier.attempts + 1
        memory = hand.machine == machine_mark() and has_grown(hand.oom_kills, oom_kills())
        excused = suspects.judge(shard, attempts, hand, memory)
        suspicion = suspects.of(shard)
        failure = Failure(
            shard=shard,
            attempts=attempts,
            given_up=attempts >= config.max_attempts and not excused,
            error=f"{_OWN_DEATH[memory]} at this shard{f', image {hand.image}' if hand.image else ''}",
            worker="this process",
            failed_at=now,
            deaths=suspicion.deaths,
            suspects=suspicion.images,
            memory=suspicion.memory,
        )
        charged.append(failure)
    return charged


def _shards_in_hand(directory: RunDirectory) -> list[int]:
    """Shards of which something was in hand when somebody last looked up from it."""
    names = [_HAND_RECORD.fullmatch(name) for name in directory.store.entries(files.FAILURES)]
    return sorted(int(match[1]) for match in names if match)
