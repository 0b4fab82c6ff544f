"""Plan one launch of a run: which shards are done, given up, selected, to be repaired, or left for later.

A selection limits one launch; the run always covers the whole manifest. `survey_run` only reads, so that a dry run can
use it; `plan_run` also removes what an earlier launch left. Amounts of work are numbers of images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.errors import DtoError
from dto_pipeline.run import folder as files
from dto_pipeline.run.folder import Failure, RunDirectory, RunScan
from dto_pipeline.run.identity import Places, RunIdentity, find_missing
from dto_pipeline.run.lease import DriverLock
from dto_pipeline.status import ImageStatus, ShardStatus

_LOG = logging.getLogger(__name__)


class SelectionError(DtoError, ValueError):
    """A selection that this manifest cannot have; the message says what it holds."""


@dataclass(frozen=True)
class Selection:
    """The part of a run that a launch is limited to; by default all of it."""

    shards: str = ""  # "3-7,12": numbers and closed ranges
    subsets: tuple[str, ...] = ()  # names of data sets
    limit: int | None = None  # images, rounded to whole shards

    def find_shards(self, count: int, subset: str) -> frozenset[int]:
        """The selected shards of a manifest with `count` shards of `subset`; `take` applies the limit later.

        Raises:
            SelectionError: a range that cannot be read or is outside, or a subset the manifest does not hold.
        """
        for name in self.subsets:
            if name != subset:
                raise SelectionError(f"the manifest holds the subset {subset!r}, not {name!r}; give its own manifest")
        if not self.shards:
            return frozenset(range(count))
        shards: set[int] = set()
        for part in self.shards.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                raise SelectionError(f"{part!r} is neither a shard nor a range of shards; write them like 3-7,12")
            start, stop = int(first), int(last) if dash else int(first)
            if start > stop or stop >= count:
                raise SelectionError(f"shards {part.strip()}: the manifest holds 0 to {count - 1}, ranges ascend")
            shards.update(range(start, stop + 1))
        return frozenset(shards)

    def take(self, work: Mapping[int, int]) -> list[int]:
        """The first shards of `work` (shard -> images to be done) within the limit; at least one, in order."""
        taken: list[int] = []
        images = 0
        for shard in sorted(work):
            images += work[shard]
            if self.limit is not None and taken and images > self.limit:
                break
            taken.append(shard)
        return taken


EVERYTHING = Selection()


@dataclass(frozen=True)
class Retry:
    """Which failures a launch tries again; by default none."""

    shards: bool = False  # those that were given up
    images: frozenset[str] = frozenset()  # statuses of images in finished shards

    @classmethod
    def of(cls, wanted: bool, statuses: Iterable[str] = ()) -> Retry:
        """What ``--retry-failed [--status S,..]`` asks for; without statuses everything that failed.

        Raises:
            SelectionError: a word that is not a failure, or statuses without a retry.
        """
        words = {word for word in statuses if word}
        failures = frozenset(str(status) for status in ImageStatus if status.is_failure)
        choices = failures | {str(ShardStatus.FAILED)}
        if unknown := sorted(words - choices):
            raise SelectionError(f"{unknown} are no failures; choose from {sorted(choices)} (failed: whole shards)")
        if words and not wanted:
            raise SelectionError("--status selects failures to try again: use it with --retry-failed")
        chosen = words or choices if wanted else set()
        return cls(ShardStatus.FAILED in chosen, failures & chosen)


@dataclass(frozen=True)
class RunPlan:
    """Work of one launch."""

    identity: RunIdentity
    done: dict[int, Receipt]  # before the launch
    work: dict[int, int]  # shard -> images to be done in it, shards in order
    repairs: frozenset[int]  # finished shards in `work`: only their failed images are done again
    unselected: list[int]  # shards that are neither done nor given up nor selected
    failed: dict[int, str]  # shards given up earlier and not tried again -> error
    earlier: dict[int, Failure]  # shard of `work` -> its attempts in earlier launches
    forgiven: tuple[int, ...]  # shards given up earlier that are tried again, from no attempts

    @property
    def fresh(self) -> list[int]:
        """Shards of `work` that are done as a whole; in order."""
        return [shard for shard in self.work if shard not in self.repairs]


def find_refusals(
    directory: RunDirectory, manifest: Manifest, config: PipelineConfig, address: str, places: Places
) -> list[str]:
    """Reasons why no launch can begin: missing inputs and foreign files, as far as this machine sees them."""
    missing = find_missing(config, manifest, places, here=address == "local" or config.run.workers == 0)
    return [text for text in (*missing, files.find_foreign_files(directory)) if text]


def survey_run(
    directory: RunDirectory,
    identity: RunIdentity,
    manifest: Manifest,
    scan: RunScan,
    selection: Selection,
    retry: Retry,
) -> RunPlan:
    """Plan the work that is left. Reads failure records of repaired shards, writes nothing.

    Raises:
        SelectionError: a selection that this manifest cannot have.
    """
    chosen, done = selection.find_shards(manifest.num_shards, manifest.subset), scan.done
    forgiven = tuple(sorted(chosen & scan.given_up.keys())) if retry.shards else ()
    failed = {shard: failure.error for shard, failure in scan.given_up.items() if shard not in forgiven}
    open_shards = [shard for shard in range(identity.shards) if shard not in done and shard not in failed]
    wanted = {shard: manifest.shard_sizes[shard].images for shard in open_shards if shard in chosen}
    failures = {shard: done[shard].image_status for shard in chosen & done.keys()}
    again = {shard: sum(words[word] for word in retry.images & words.keys()) for shard, words in failures.items()}
    wanted |= {shard: images for shard, images in again.items() if images}
    taken = selection.take(wanted)
    repairs = frozenset(taken) & done.keys()
    work, unselected = {shard: wanted[shard] for shard in taken}, sorted(set(open_shards) - set(taken))
    earlier = {shard: failure for shard, failure in scan.failures.items() if shard in work and not failure.given_up}
    return RunPlan(identity, done, work, repairs, unselected, failed, earlier, forgiven)


def plan_run(
    directory: RunDirectory,
    identity: RunIdentity,
    manifest: Manifest,
    selection: Selection,
    retry: Retry,
    recheck: bool = False,
    lock: DriverLock | None = None,
) -> RunPlan:
    """Open the run, clean up what earlier launches left, and plan what is left to do. Call it under the lock.

    `recheck`: read every label file, and do those again that differ from their receipts.
    """
    files.open_run(directory, identity, lock)
    files.sweep_leftovers(directory)
    scan = files.scan_run(directory, identity, footers=True)
    if recheck:
        scan = scan.without(files.find_damage(directory, scan.done))
    for reason in scan.unreadable.values():
        _LOG.warning("%s; the attempts at its shard are counted from 0", reason)
    plan = survey_run(directory, identity, manifest, scan, selection, retry)
    files.remove_surplus(directory, scan)
    for shard in {*scan.settled, *scan.unreadable, *plan.forgiven}:  # records that no longer count
        directory.store.remove(files.failure_name(shard))
    for shard, reason in scan.void.items():
        _LOG.warning("shard %d is done again: %s", shard, reason)
    return plan
