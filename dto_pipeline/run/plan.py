"""What one launch of a run will do: which shards are done, given up, selected, to be repaired, left for another time.

A selection narrows one launch; the run stays the whole manifest. `survey_run` only reads, so that a dry run can ask the
same question; `plan_run` settles first what an earlier launch left behind. Counts are images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

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
        return parse_shards(self.shards, count) if self.shards else frozenset(range(count))

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
        failures = {str(status) for status in ImageStatus if status.is_failure}
        choices = failures | {str(ShardStatus.FAILED)}
        if unknown := sorted(set(words) - choices):
            raise SelectionError(f"{unknown} are no failures; choose from {sorted(choices)} (failed: whole shards)")
        if not wanted:
            if words:
                raise SelectionError("--status names failures to take up again: use it with --retry-failed")
            return cls()
        return cls(not words or ShardStatus.FAILED in words, frozenset(words or failures) & failures)

    def count_images(self, image_status: Mapping[str, int]) -> int:
        """Images to do again in a finished shard with these counts."""
        return sum(count for word, count in image_status.items() if word in self.images)


def parse_shards(text: str, count: int) -> frozenset[int]:
    """Shard numbers of ``3-7,12``, each below `count`.

    Raises:
        SelectionError: not numbers and ranges, or outside the manifest.
    """
    shards: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise SelectionError(f"{part!r} is neither a shard nor a range of shards; write them like 3-7,12")
        start, stop = int(first), int(last) if dash else int(first)
        if start > stop or stop >= count:
            raise SelectionError(f"shards {part.strip()}: the manifest's shards are 0 to {count - 1}, ranges ascend")
        shards.update(range(start, stop + 1))
    return frozenset(shards)


@dataclass(frozen=True)
class RunPlan:
    """What one launch of a run will do."""

    identity: RunIdentity
    done: dict[int, Receipt]
    work: dict[int, int]  # shard -> images to be done in it, shards in order
    repairs: frozenset[int]  # shards of `work` that are done already: only their failed images are done again
    retry: Retry
    unselected: list[int]  # shards that are neither done nor given up nor selected
    failed: dict[int, str]  # shards given up earlier that are not taken up again -> error
    earlier: dict[int, Failure] = field(default_factory=dict)  # attempts at the shards of `work` in earlier launches
    forgiven: tuple[int, ...] = ()  # shards given up earlier that are taken up again
    void: dict[int, str] = field(default_factory=dict)  # shards whose receipt does not hold, and why
    unreadable: dict[int, str] = field(default_factory=dict)  # shards whose failure record counts as none, and why


def find_refusals(
    directory: RunDirectory, manifest: Manifest, config: PipelineConfig, address: str, places: Places
) -> list[str]:
    """Why no launch may begin: what every image, or every worker, would fail for, as far as this machine can tell.

    A cluster's nodes may see folders that this machine does not: there each worker looks before its first shard.
    """
    missing = find_missing(config, manifest, places, here=address == "local" or config.run.workers == 0)
    return [text for text in (*missing, files.find_strangers(directory)) if text]


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
    again = {shard: retry.count_images(scan.done[shard].image_status) for shard in sorted(chosen & scan.done.keys())}
    wanted.update({shard: images for shard, images in again.items() if images})
    taken = selection.take(wanted)
    repairs = frozenset(taken) & scan.done.keys()
    earlier = {shard: scan.failures[shard] for shard in taken if shard in scan.failures and shard not in forgiven}
    for shard in repairs.intersection(scan.settled):  # repairs not brought to an end; given up ones begin afresh
        failure = files.read_shard_failure(directory, shard)
        if failure is not None and not failure.given_up:
            earlier[shard] = failure
    return RunPlan(
        identity=identity,
        done=scan.done,
        work={shard: wanted[shard] for shard in taken},
        repairs=repairs,
        retry=retry,
        unselected=sorted(set(open_shards) - set(taken)),
        failed=failed,
        earlier=earlier,
        forgiven=forgiven,
        void=scan.void,
        unreadable=scan.unreadable,
    )


def scan_closely(directory: RunDirectory, identity: RunIdentity, recheck: bool = False) -> tuple[RunScan, list[int]]:
    """What a launch finds: receipts, ends of label files, and all of those that `dto verify` found damaged.

    Args:
        recheck: read every label file.

    Returns:
        The scan, and the shards that notes of damage name.
    """
    scan = files.scan_run(directory, identity, footers=True)
    noted = files.find_notes(directory, "damage")
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
    scan = replace(scan, records={**scan.records, **{failure.shard: failure for failure in deaths}})
    plan = survey_run(directory, identity, manifest, scan, selection, retry)
    files.settle_records(directory, scan, going_on=plan.repairs & plan.earlier.keys())
    for shard in noted:
        directory.store.remove(files.damage_name(shard))
    for shard in plan.forgiven:
        files.clear_failure(directory, shard)
    for shard, reason in scan.void.items():
        _LOG.warning("shard %d is done again: %s", shard, reason)
    if swept:
        _LOG.info("%d temporary files of an earlier launch were removed", swept)
    return plan
