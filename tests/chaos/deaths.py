"""Scenarios in which processes die: workers, raylet, driver, at chosen and at random moments.

Each takes a `DisturbedRun`, disturbs it and leaves the resuming to `play`. Where the driver is to cope by itself, its
exit code is expected to be 0. Seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from tests.chaos.disturbed_run import DisturbedRun, Start, slow_images
from tests.chaos.faults import DIE, Fault
from tests.chaos.judge import find_differences
from tests.chaos.processes import Kind

_PACE_S = 1.0  # every image takes so much longer
_VICTIMS = ((Kind.WORKER, 0.86), (Kind.DRIVER, 0.07), (Kind.RAYLET, 0.07))  # of random kills, with their shares
_RANDOM_PACE_S = 3.0  # the same under many random kills: a run is hit several times, so that Ray starts less often
_MANY_KILLS = 10
_ANY_MOMENT = 0.3  # share of random kills that wait for nothing; the others wait for one more receipt
_DEADLY_IMAGES = 2  # of every start with Ray: each ends the first two workers that open it
_PAUSE_S = 3.0  # most that is waited on top, before each
_STANDSTILL_S = 60.0  # so long is waited for a receipt, if need be


def publisher_killed(run: DisturbedRun) -> None:
    """A worker dies as it names a label file, another as it names a receipt; the driver copes and sweeps."""
    naming = ("os.link", "os.rename")
    faults = [
        Fault("labels/shard-00001.parquet", DIE, events=naming, times=1),
        Fault("receipts/shard-00003.json", DIE, events=naming, times=1),
    ]
    run.expect_exit(run.start(faults=faults), 0)
    run.kills += len(faults)
    run.complaints += find_differences(run.view, run.arena.undisturbed)
    receipt = json.loads((run.view / "receipts" / "shard-00003.json").read_text())
    run.expect(receipt["adopted"], "labels that only lacked their receipt were made again")


def raylet_killed(run: DisturbedRun) -> None:
    """SIGKILL to the raylet alone; driver and workers live on, without Ray."""
    start = run.start(faults=[slow_images(_PACE_S)])
    run.wait_for_receipts(1, start)
    run.kill(Kind.RAYLET)
    code = run.finish(start)
    run.note = f"the driver ended with exit code {code}"


def random_kills(run: DisturbedRun) -> None:
    """SIGKILL to workers, drivers and raylets at random moments, as often as wanted; finished runs begin anew."""
    _kill_at_random(run, run.arena.workers, _VICTIMS)


def random_driver_kills(run: DisturbedRun) -> None:
    """The same without Ray: the one process that loads, computes and publishes is killed wherever it is."""
    run.resume_workers = 0
    _kill_at_random(run, 0, ((Kind.DRIVER, 1.0),))


def _kill_at_random(run: DisturbedRun, workers: int, victims: Sequence[tuple[Kind, float]]) -> None:
    runs, alone = 1, 0
    pace = _RANDOM_PACE_S if workers and run.kills_wanted > _MANY_KILLS else _PACE_S
    while run.wants_kills:
        faults = [slow_images(pace), *(_deadly_images(run) if workers else [])]
        start = run.start(*run.retry, *_move_work(run), workers=workers, faults=faults)
        while start.alive and run.wants_kills:
            _wait_for_a_moment(run, start)
            (kind,) = run.dice.choices([kind for kind, _ in victims], [share for _, share in victims])
            run.kill(kind)
        code = run.finish(start)
        run.kills += run.deaths_by_faults
        if code == 0 and run.wants_kills:
            run.judge()
            alone += run.shards_done_image_by_image
            run.begin_anew()
            runs += 1
        else:
            run.resumes += 1
    alone += run.shards_done_image_by_image
    run.note = f"{runs} runs one after the other, {alone} shards done image by image after deaths"


def _move_work(run: DisturbedRun) -> list[str]:
    """Every start moves the work in another way: nothing of it may change a bit."""
    options = {"batch_images": run.dice.choice((1, 2, 3, 8)), "torch_threads": run.dice.choice((1, 2))}
    return [word for name, value in options.items() for word in ("--set", f"run.{name}={value}")]


def _deadly_images(run: DisturbedRun) -> list[Fault]:
    """Images that end two workers each: their shards are then done image by image."""
    images = [str(row["image_path"]) for shard in range(run.arena.shards) for row in run.arena.rows(shard)]
    return [Fault(image, DIE, times=2) for image in run.dice.sample(images, min(_DEADLY_IMAGES, len(images)))]


def _wait_for_a_moment(run: DisturbedRun, start: Start) -> None:
    """Some kills come at any moment, Ray's start included; most come while there is work to lose."""
    draw, latest, receipts = run.dice.random(), time.monotonic() + _STANDSTILL_S, run.receipts_there
    while draw > _ANY_MOMENT and start.alive and time.monotonic() < latest and run.receipts_there == receipts:
        time.sleep(0.05)
    time.sleep(run.dice.uniform(0, _PAUSE_S))
