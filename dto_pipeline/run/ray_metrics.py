"""A run's numbers for Prometheus, carried by Ray: the second door to Ray, for its metrics only.

The driver counts; Ray's agent on the driver's node exposes them at ``http://NODE:MetricsExportPort/metrics`` (see
``ray.nodes()``), with ``ray_`` in front of each name and ``_total`` behind each counter. All have the tag `subset`.

    ray_dto_images_total            images by `status` (see `status.ImageStatus`)
    ray_dto_people_total            people by `status`
    ray_dto_shards_total            shards by `outcome`: done, adopted, repaired, retried, given_up
    ray_dto_stage_seconds_total     busy seconds by `stage`, all workers and threads added up [s]
    ray_dto_workers_lost_total      workers that died or were ended
    ray_dto_workers                 workers that may be fed, now
    ray_dto_shards_pending          shards neither done nor given up, of this launch
    ray_dto_shard_seconds           histogram: seconds a shard took [s]

Of a driver behind ``ray://`` nothing is exposed: it is no part of the cluster.
"""

from __future__ import annotations

import logging

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from dto_pipeline.data.receipts import Receipt
from dto_pipeline.run.loop import Charge

SHARD_SECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]  # borders of the histogram [s]


_LOG = logging.getLogger(__name__)


def open_metrics(subset: str) -> RayMetrics | None:
    """Metrics of a run on the Ray this process is connected to; None behind ``ray://``, which is said."""
    if ray.util.client.ray.is_connected():
        _LOG.warning("no metrics are exposed behind ray://; submit the run as a Ray job to have them")
        return None
    return RayMetrics(subset)


class RayMetrics:
    """Counts what a `run.progress.FileLedger` is told. Ray must be connected."""

    def __init__(self, subset: str) -> None:
        """`subset`: tag of every number, so that several runs on one cluster can be told apart."""
        self._tag = {"subset": subset}
        self._images = self._counter("dto_images", "images that left the pipeline", "status")
        self._persons = self._counter("dto_people", "people that left the pipeline", "status")
        self._shards = self._counter("dto_shards", "shards by what became of an attempt", "outcome")
        self._stages = self._counter("dto_stage_seconds", "busy seconds, threads added up", "stage")
        self._lost = self._counter("dto_workers_lost", "workers that died or were ended")
        self._workers = Gauge("dto_workers", "workers that may be fed", ("subset",))
        self._pending = Gauge("dto_shards_pending", "shards neither done nor given up", ("subset",))
        self._seconds = Histogram("dto_shard_seconds", "seconds a shard took", SHARD_SECONDS, ("subset",))

    def shard_done(self, receipt: Receipt, outcome: str) -> None:
        """A shard was ``done``, ``adopted`` or ``repaired``; images of a repair were counted before."""
        self._shards.inc(1, {**self._tag, "outcome": outcome})
        if outcome == "repaired":
            return
        _count(self._images, receipt.image_status, "status", self._tag)
        _count(self._persons, receipt.person_status, "status", self._tag)
        _count(self._stages, receipt.stage_seconds, "stage", self._tag)
        if outcome == "done":
            self._seconds.observe(receipt.wall_s, self._tag)

    def shard_failed(self, charge: Charge) -> None:
        """a shard used up an attempt."""
        self._shards.inc(1, {**self._tag, "outcome": "given_up" if charge.given_up else "retried"})

    def worker_lost(self) -> None:
        """A worker died or was ended."""
        self._lost.inc(1, self._tag)

    def gauge(self, workers: int, pending: int) -> None:
        """Workers that may be fed, shards that are neither done nor given up."""
        self._workers.set(workers, self._tag)
        self._pending.set(pending, self._tag)

    def _counter(self, name: str, description: str, *tags: str) -> Counter:
        return Counter(name, description, ("subset", *tags))


def _count(counter: Counter, amounts: dict[str, int] | dict[str, float], tag: str, tags: dict[str, str]) -> None:
    for word, amount in amounts.items():
        if amount > 0:  # Ray refuses to count nothing
            counter.inc(amount, {**tags, tag: word})
