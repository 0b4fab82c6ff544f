"""A run's numbers for Prometheus, carried by Ray.

The driver counts; Ray's agent on the driver's node exposes the numbers at ``http://NODE:MetricsExportPort/metrics``
(see ``ray.nodes()``), with ``ray_`` before each name and ``_total`` behind each counter. All have the tag `subset`.

    ray_dto_images_total            images by `status` (see `status.ImageStatus`)
    ray_dto_people_total            people by `status`
    ray_dto_shards_total            shards by `outcome`: done, adopted, repaired, retried, given_up
    ray_dto_stage_seconds_total     busy seconds by `stage`, all workers and threads added up [s]
    ray_dto_workers_lost_total      workers that died or were ended
    ray_dto_workers                 workers that may be fed, now
    ray_dto_shards_pending          shards neither done nor given up, of this launch
    ray_dto_shard_seconds           histogram: seconds a shard took [s]
"""

from __future__ import annotations

import logging

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from dto_pipeline.data.receipts import Receipt
from dto_pipeline.run.budget import Charge

SHARD_SECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]  # borders of the histogram [s]
_LOG = logging.getLogger(__name__)


def open_metrics(subset: str) -> RayMetrics | None:
    """Metrics of a run on the Ray this process is connected to; None behind ``ray://``, which is said.

    A driver there is no part of the cluster, so that nothing of it is exposed.
    """
    if ray.util.client.ray.is_connected():
        _LOG.warning("no metrics are exposed behind ray://; submit the run as a Ray job to have them")
        return None
    return RayMetrics(subset)


class RayMetrics:
    """Counts what the driver's ledger is told. Ray must be connected."""

    def __init__(self, subset: str) -> None:
        """`subset`: tag of every number, so that several runs on one cluster can be told apart."""
        self._tag, tags = {"subset": subset}, ("subset",)
        self._images = Counter("dto_images", "images that left the pipeline", (*tags, "status"))
        self._persons = Counter("dto_people", "people that left the pipeline", (*tags, "status"))
        self._shards = Counter("dto_shards", "shards by what became of an attempt", (*tags, "outcome"))
        self._stages = Counter("dto_stage_seconds", "busy seconds, threads added up", (*tags, "stage"))
        self._lost = Counter("dto_workers_lost", "workers that died or were ended", tags)
        self._workers = Gauge("dto_workers", "workers that may be fed", tags)
        self._pending = Gauge("dto_shards_pending", "shards neither done nor given up", tags)
        self._seconds = Histogram("dto_shard_seconds", "seconds a shard took", SHARD_SECONDS, tags)

    def shard_done(self, receipt: Receipt, outcome: str) -> None:
        """A shard was ``done``, ``adopted`` or ``repaired``; images of a repair were counted before."""
        self._shards.inc(1, {**self._tag, "outcome": outcome})
        if outcome == "repaired":
            return
        for counter, tag, amounts in (
            (self._images, "status", receipt.image_status),
            (self._persons, "status", receipt.person_status),
            (self._stages, "stage", receipt.stage_seconds),
        ):
            for word, amount in amounts.items():
                if amount > 0:  # Ray refuses to count nothing
                    counter.inc(amount, {**self._tag, tag: word})
        if outcome == "done":
            self._seconds.observe(receipt.wall_s, self._tag)

    def shard_failed(self, charge: Charge) -> None:
        """A shard used up an attempt."""
        self._shards.inc(1, {**self._tag, "outcome": "given_up" if charge.given_up else "retried"})

    def worker_lost(self) -> None:
        self._lost.inc(1, self._tag)

    def gauge(self, workers: int, pending: int) -> None:
        """Workers that may be fed, shards that are neither done nor given up."""
        self._workers.set(workers, self._tag)
        self._pending.set(pending, self._tag)
