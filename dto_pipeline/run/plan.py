"""What one launch of a run will do: which shards are done, given up, selected, to be repaired, left for another time.

`survey_run` only reads, so that a dry run can ask the same question; `plan_run` settles first what an earlier launch
left behind. Counts are images.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from dto_pipeline.config import PipelineConfig, RunConfig
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.run import folder as files
from dto_pipeline.run.deaths import charge_own_deaths
from dto_pipeline.run.finished import clear_notes, find_damage, noted_damage
from dto_pipeline.run.folder import Failure, RunDirectory, RunScan
from dto_pipeline.run.identity import Places, RunIdentity, find_missing, find_relative, find_unnamed
from dto_pipeline.run.lease import DriverLock
from dto_pipeline.run.selection import Retry, Selection

_LOG = logging.getLogger(__name__)


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

    @property
    def attempts(self) -> dict[int, int]:
        """That shards have used up."""
        return {shard: failure.attempts for shard, failure in self.earlier.items()}


def find_refusals(
    directory: RunDirectory, manifest: Manifest, config: PipelineConfig, address: str, places: Places
) -> list[str]:
    """Why no launch may begin: what every image, or every worker, would fail for, as far as this machine can tell.

    A cluster's nodes may see folders that this machine does not: there each worker looks before its first shard.
    """
    if address == "local" or config.run.workers == 0:
        missing = find_missing(config, manifest, places)
    else:
        missing = [*find_unnamed(config, manifest), *find_relative(manifest, places)]
    stranger = files.find_strangers(directory)
    return [*missing, *([stranger] if stranger else [])]


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
    return RunPlan(
        identity=identity,
        done=scan.done,
        work={shard: wanted[shard] for shard in taken},
        repairs=repairs,
        retry=retry,
        unselected=sorted(set(open_shards) - set(taken)),
        failed=failed,
        earlier={**earlier, **_read_repair_failures(directory, scan, repairs)},
        forgiven=forgiven,
        void=scan.void,
        unreadable=scan.unreadable,
    )


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
    """Open the run, take away what does not hold, and list what is left. Call it under the lock.

    Args:
        recheck: read every label file, see `publish.find_damage`; otherwise only those that `dto verify` found
            damaged, and the sizes and footers of the others.
    """
    files.open_run(directory, identity, lock)
    swept = files.sweep_temporary(directory)
    scan = files.scan_run(directory, identity, footers=True)  # before deaths are charged: that writes failures anew
    noted = noted_damage(directory)
    scan = scan.without(
        find_damage(
            directory, scan.done if recheck else {shard: scan.done[shard] for shard in noted if shard in scan.done}
        )
    )
    for reason in scan.unreadable.values():
        _LOG.warning("%s; the attempts of its shard are counted anew", reason)
    deaths = charge_own_deaths(directory, config, time.time())
    for failure in deaths:
        _LOG.warning("shard %d: %s (attempt %d)", failure.shard, failure.error, failure.attempts)
    scan = scan.with_failures(deaths)
    plan = survey_run(directory, identity, manifest, scan, selection, retry)
    going_on = plan.repairs & plan.earlier.keys()
    files.settle_records(directory, dataclasses.replace(scan, settled=_without(scan.settled, going_on)))
    clear_notes(directory, noted)
    for shard in plan.forgiven:
        files.clear_failure(directory, shard)
    for shard, reason in scan.void.items():
        _LOG.warning("shard %d is done again: %s", shard, reason)
    if swept:
        _LOG.info("%d temporary files of an earlier launch were removed", swept)
    return plan


def _read_repair_failures(directory: RunDirectory, scan: RunScan, repairs: frozenset[int]) -> Mapping[int, Failure]:
    """Attempts at repairs that earlier launches did not bring to an end; those that were given up begin afresh."""
    found = {}
    for shard in repairs.intersection(scan.settled):
        failure = files.read_shard_failure(directory, shard)
        if failure is not None and not failure.given_up:
            found[shard] = failure
    return found


def _without(shards: tuple[int, ...], excepted: frozenset[int]) -> tuple[int, ...]:
    return tuple(shard for shard in shards if shard not in excepted)
