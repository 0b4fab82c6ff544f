"""What one launch of a run will do: which shards are done, given up, selected, to be repaired, left for another time.

A selection narrows one launch; the run stays the whole manifest. `survey_run` only reads, so that a dry run can ask the
same question; `plan_run` settles first what an earlier launch left behind. Counts are images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dto_pipeline.config import PipelineConfig, RunConfig
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.errors import DtoError
from dto_pipeline.run import folder as files
from dto_pipeline.run.deaths import charge_own_deaths
from dto_pipeline.run.folder import Failure, RunDirectory, RunScan
from dto_pipeline.run.identity import Places, RunIdentity, find_missing
from dto_pipeline.run.lease import DriverLock
from dto_pipeline.run.publish import find_damage
from dto_pipeline.status import ImageStatus, ShardStatus

_LOG = logging.getLogger(__name__)


class SelectionError(DtoError, ValueError):
    """A selection that means nothing for this manifest; the message says what there is."""


@dataclass(frozen=True)
class Selection:
    """What a launch is limited to; the defaults are everything."""

    shards: str = ""  # "3-7,12": numbers and closed ranges
    subsets: tuple[str, ...] = ()  # names of data sets
    limit: int | None = None  # images, rounded to whole shards

    def find_shards(self, count: int, subset: str) -> frozenset[int]:
        """Shards of a manifest of `count` shards of `subset` that are selected (the limit is applied to work later).

        Raises:
            SelectionError: a range that cannot be read or lies outside, or a subset the manifest does not hold.
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
    """Which failures a launch takes up again; the defaults are none."""

    shards: bool = False  # those that were given up
    images: frozenset[str] = frozenset()  # statuses of images in finished shards

    @classmethod
    def of(cls, wanted: bool, statuses: Iterable[str] = ()) -> Retry:
        """Meaning of ``--retry-failed [--status S,..]``: without statuses everything that failed.

        Raises:
            SelectionError: a word that is not a failure, or statuses without a retry.
        """
        words = [word for word in statuses if word]
        failures = frozenset(str(status) for status in ImageStatus if status.is_failure)
        choices = failures | {str(ShardStatus.FAILED)}
        if unknown := sorted(set(words) - choices):
            raise SelectionError(f"{unknown} are no failures; choose from {sorted(choices)} (failed: whole shards)")
        if words and not wanted:
            raise SelectionError("--status names failures to take up again: use it with --retry-failed")
        every = wanted and not words
        return cls(every or ShardStatus.FAILED in words, failures if every else failures.intersection(words))


@dataclass(frozen=True)
class RunPlan:
    """What one launch of a run will do."""

    identity: RunIdentity
    scan: RunScan  # what there was
    work: dict[int, int]  # shard -> images to be done in it, shards in order
    repairs: frozenset[int]  # shards of `work` that are done already: only their failed images are done again
    retry: Retry
    unselected: list[int]  # shards that are neither done nor given up nor selected
    failed: dict[int, str]  # shards given up earlier that are not taken up again -> error
    earlier: dict[int, Failure]  # attempts at the shards of `work` in earlier launches
    forgiven: tuple[int, ...]  # shards given up earlier that are taken up again

    @property
    def done(self) -> dict[int, Receipt]:
        return self.scan.done


def find_refusals(
    directory: RunDirectory, manifest: Manifest, config: PipelineConfig, address: str, places: Places
) -> list[str]:
    """Why no launch may begin: what every image, or every worker, would fail for, as far as this machine can tell."""
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
    """What is to be done, given what `scan` found. Reads failure records of repaired shards, writes nothing.

    Raises:
        SelectionError: a selection that means nothing for this manifest.
    """
    chosen = selection.find_shards(manifest.num_shards, manifest.subset)
    given_up = {shard: failure for shard, failure in scan.failures.items() if failure.given_up}
    forgiven = tuple(sorted(chosen & given_up.keys())) if retry.shards else ()
    failed = {shard: failure.error for shard, failure in given_up.items() if shard not in forgiven}
    open_shards = [shard for shard in range(identity.shards) if shard not in scan.done and shard not in failed]
    wanted = {shard: manifest.shard_sizes[shard].images for shard in open_shards if shard in chosen}
    for shard in sorted(chosen & scan.done.keys()):
        statuses = scan.done[shard].image_status
        if again := sum(statuses[word] for word in statuses if word in retry.images):
            wanted[shard] = again
    taken = selection.take(wanted)
    repairs = frozenset(taken) & scan.done.keys()
    earlier = {shard: scan.failures[shard] for shard in taken if shard in scan.failures and shard not in forgiven}
    for shard in repairs.intersection(scan.settled):  # repairs not brought to an end; given up ones begin afresh
        failure = files.read_shard_failure(directory, shard)
        if failure is not None and not failure.given_up:
            earlier[shard] = failure
    work, unselected = {shard: wanted[shard] for shard in taken}, sorted(set(open_shards) - set(taken))
    return RunPlan(identity, scan, work, repairs, retry, unselected, failed, earlier, forgiven)


def scan_closely(directory: RunDirectory, identity: RunIdentity, recheck: bool = False) -> tuple[RunScan, list[int]]:
    """What a launch finds, and the shards that notes of damage name. `recheck`: read every label file."""
    scan = files.scan_run(directory, identity, footers=True)
    noted = files.find_notes(directory, files.DAMAGE)
    looked_at = scan.done if recheck else {shard: scan.done[shard] for shard in noted if shard in scan.done}
    return scan.without(find_damage(directory, looked_at)), noted


def plan_run(
    directory: RunDirectory,
    identity: RunIdentity,
    manifest: Manifest,
    config: RunConfig,
    selection: Selection,
    retry: Retry,
    recheck: bool = False,
    lock: DriverLock | None = None,
) -> RunPlan:
    """Open the run, take away what does not hold, and list what is left. Call it under the lock."""
    files.open_run(directory, identity, lock)
    swept = files.sweep_temporary(directory)
    scan, noted = scan_closely(directory, identity, recheck)  # before deaths are charged: that writes failures anew
    for reason in scan.unreadable.values():
        _LOG.warning("%s; the attempts of its shard are counted anew", reason)
    deaths = charge_own_deaths(directory, config, time.time())
    for failure in deaths:
        _LOG.warning("shard %d: %s (attempt %d)", failure.shard, failure.error, failure.attempts)
    scan = scan.with_failures(deaths)
    plan = survey_run(directory, identity, manifest, scan, selection, retry)
    files.settle_records(directory, scan, going_on=plan.repairs & plan.earlier.keys())
    for shard in noted:
        directory.store.remove(files.failure_name(shard, files.DAMAGE))
    for shard in plan.forgiven:
        files.clear_failure(directory, shard)
    for shard, reason in scan.void.items():
        _LOG.warning("shard %d is done again: %s", shard, reason)
    if swept:
        _LOG.info("%d temporary files of an earlier launch were removed", swept)
    return plan
