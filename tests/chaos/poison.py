"""Scenarios in which input or clock are poison, or two drivers want the same run.

Each takes a `DisturbedRun`, disturbs it and leaves the resuming to `play`.
"""

from __future__ import annotations

import json
import signal
import time

from dto_pipeline.data.labels import LabelsError, read_labels
from dto_pipeline.status import ImageStatus
from tests.chaos.disturbed_run import DisturbedRun, slow_images
from tests.chaos.faults import DIE, RAISE, Fault
from tests.chaos.judge import read_label_bytes
from tests.chaos.processes import Kind

_PACE_S = 0.4  # every image takes so much longer
_DAY_S = 86400.0


def poison_image(run: DisturbedRun) -> None:
    """An image that kills every process that opens it costs its own row; once mended, the row is as undisturbed."""
    shard, image = run.arena.good_image()
    run.expect_exit(run.start(faults=[Fault(image, DIE)]), 0)
    _expect_others_done(run, shard)
    run.complaints += _compare_rows(run, shard, image)
    run.retry = ("--retry-failed",)


def _compare_rows(run: DisturbedRun, shard: int, image: str) -> list[str]:
    """Sentences about the poisoned shard, where more than one row differs or that row does not say why."""
    try:
        found = read_labels(run.view / "labels" / f"shard-{shard:05d}.parquet").to_pylist()
    except LabelsError as error:
        return [f"shard {shard} was lost with its poison image: {error}"]
    complaints = []
    wanted = run.arena.rows(shard)
    if [row["image_id"] for row in found] != [row["image_id"] for row in wanted]:
        return [f"shard {shard} has other rows than without the poison image"]
    for row, calm in zip(found, wanted, strict=True):
        if row["image_path"] != image and repr(row) != repr(calm):  # by their text: NaN equals NaN there
            complaints.append(f"{row['image_path']} suffers from the poison image beside it")
        if row["image_path"] == image and not (ImageStatus(row["status"]).is_failure and row["message"]):
            complaints.append(f"{image} kills whoever opens it, its row says {row['status']}: {row['message']}")
    return complaints


def poison_shard(run: DisturbedRun) -> None:
    """A shard whose labels cannot be published: given up after its attempts, all others done, exit code 1."""
    shard = run.arena.shards // 2
    fault = Fault(f"labels/shard-{shard:05d}.parquet", RAISE, events=("os.link", "os.rename", "open"))
    run.expect_exit(run.start(faults=[fault]), 1)
    _expect_others_done(run, shard)
    failure = run.view / "failures" / f"shard-{shard:05d}.json"
    run.expect(failure.exists() and json.loads(failure.read_text())["given_up"], f"{failure.name} does not say so")


def _expect_others_done(run: DisturbedRun, shard: int) -> None:
    """Complain about shards other than `shard` that are missing or differ."""
    found = read_label_bytes(run.view)
    for name, calm in run.arena.undisturbed.items():
        if name != f"shard-{shard:05d}.parquet":
            run.expect(found.get(name) == calm, f"{name} suffers from shard {shard}")


def two_drivers(run: DisturbedRun) -> None:
    """Two drivers started on one run at once: one does it, the other is refused in words."""
    starts = [run.start(faults=[slow_images(_PACE_S)]) for _ in range(2)]
    codes = [run.finish(start) for start in starts]
    run.expect(sorted(codes) == [0, 2], f"exit codes {codes} instead of one 0 and one 2")
    refused = starts[codes.index(2)].output() if 2 in codes else ""
    run.expect("Traceback" not in refused and "process" in refused, f"the refused driver said: {refused[-600:]}")


def driver_stopped(run: DisturbedRun) -> None:
    """SIGSTOP to the driver, a second driver comes, SIGCONT to the first: whoever works on, nothing is done twice."""
    first = run.start(faults=[slow_images(_PACE_S)])
    run.wait_for_receipts(1, first)
    stopped = run.kill(Kind.DRIVER, signal.SIGSTOP)
    second = run.start(workers=0)
    code = run.finish(second)
    if stopped is not None:
        stopped.send(signal.SIGCONT)
    codes = run.finish(first), code
    run.note = f"the stopped driver ended with exit code {codes[0]}, the second with {codes[1]}"
    run.expect(set(codes) <= {0, 2} and 0 in codes, f"exit codes {codes} instead of a 0 and perhaps a 2")
    for start in (first, second):
        run.expect("Traceback" not in start.output(), f"a traceback: {start.output()[-600:]}")


def clock_set_back(run: DisturbedRun) -> None:
    """The wall clock is a day ahead, is set right in the middle of the run, and then the driver is killed."""
    clock = run.home / "clock"
    clock.write_text(str(_DAY_S))
    start = run.start(faults=[slow_images(_PACE_S)], clock=clock)
    run.wait_for_receipts(1, start)
    clock.with_suffix(".new").write_text("0")
    clock.with_suffix(".new").replace(clock)
    first = next(iter(sorted((run.view / "receipts").glob("shard-*.json"))))
    ahead = json.loads(first.read_text())["finished_at"] - time.time()
    run.expect(ahead > _DAY_S / 2, "the clock was not ahead: the disturbance had no hold")
    run.wait_for_receipts(2, start)
    run.kill(Kind.DRIVER)
    run.finish(start)
