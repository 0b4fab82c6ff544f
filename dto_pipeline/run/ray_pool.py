"""Workers as Ray actors: the only place that imports Ray.

Knows how actors are started, fed and ended; decides nothing (see `schedule`). Actors and tasks are never restarted by
Ray itself: what a death costs is the driver's business. Only shard numbers and receipts travel.
"""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import ray

from dto_pipeline.config import RunConfig
from dto_pipeline.run.pool import (
    DeviceLost,
    Event,
    Runner,
    ShardDone,
    ShardRaised,
    WorkerLost,
    WorkerReady,
    one_line,
    process_name,
)
from dto_pipeline.run.receipt import Receipt

OBJECT_STORE_BYTES = 256 << 20  # shard numbers and receipts need next to nothing
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
    "RAY_AUTH_MODE": "disabled",  # unsaid, a local start writes a token file that later clients stumble over
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run dto run` must not rebuild the environment per worker
    "RAY_DEDUP_LOGS": "0",  # equal lines of two workers are two facts
}
_LOG = logging.getLogger(__name__)


class _Worker:
    """What runs in the actor's process."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def ping(self) -> str:
        """Warm up and say where we are; the answer means that shards are welcome."""
        self._runner.warm_up()
        return process_name()

    def run(self, shard: int, attempt: int) -> Receipt:
        return self._runner.run(shard, attempt)


@dataclass
class _Actor:
    """One worker as the driver sees it."""

    handle: Any
    place: str = "not started yet"  # host:pid once it has answered


@dataclass(frozen=True)
class _Task:
    """What an outstanding reference stands for; `shard` None = the ping."""

    worker: str
    shard: int | None


class RayPool:
    """A `WorkerPool` of Ray actors. Starts Ray, or uses the one this process is already connected to."""

    def __init__(self, runner: Runner, config: RunConfig, address: str = "local") -> None:
        """
        Args:
            runner: not warmed up; a copy travels to every actor.
            config: what an actor asks for (`cpus_per_worker`, `gpus_per_worker`) and its threads.
            address: ``local`` starts Ray on this machine; ``auto`` or an address joins a cluster.
        """
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            start_ray(config, address)
        self._runner = ray.put(runner)
        self._actor_class: Any = ray.remote(_Worker).options(**_actor_options(config))
        self._actors: dict[str, _Actor] = {}
        self._tasks: dict[Any, _Task] = {}  # in the order of submission
        self._started = 0

    def start_worker(self) -> str:
        self._started += 1
        worker = f"worker-{self._started}"
        handle = self._actor_class.remote(self._runner)
        self._actors[worker] = _Actor(handle)
        self._tasks[handle.ping.remote()] = _Task(worker, None)
        return worker

    def assign(self, worker: str, shard: int, attempt: int) -> None:
        reference = self._actors[worker].handle.run.remote(shard, attempt)
        self._tasks[reference] = _Task(worker, shard)

    def wait(self, timeout_s: float) -> list[Event]:
        references = list(self._tasks)
        ray.wait(references, num_returns=1, timeout=timeout_s)
        # Everything that is ready by now, in the order of submission: answers of a worker come before its death.
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        arrived = set(ready)
        return [self._collect(ref) for ref in references if ref in arrived and ref in self._tasks]

    def kill(self, worker: str) -> None:
        ray.kill(self._forget(worker).handle, no_restart=True)

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        for worker in list(self._actors):
            self.kill(worker)
        if self._owns_ray:
            ray.shutdown()

    def _collect(self, reference: Any) -> Event:
        task = self._tasks.pop(reference)
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            return self._raised(task, error)
        except ray.exceptions.RayError as error:
            return self._lost(task.worker, error)
        if task.shard is None:
            self._actors[task.worker].place = answer
            _LOG.info("%s is ready (%s)", task.worker, answer)
            return WorkerReady(task.worker)
        return ShardDone(task.worker, task.shard, answer)

    def _raised(self, task: _Task, error: ray.exceptions.RayTaskError) -> Event:
        """The runner raised: in a shard, or while warming up, which makes the worker useless."""
        cause = error.cause if isinstance(error.cause, BaseException) else error
        detail = str(error)
        if task.shard is None:
            self.kill(task.worker)
            return WorkerLost(task.worker, one_line(cause), detail)
        return ShardRaised(task.worker, task.shard, one_line(cause), detail, isinstance(cause, DeviceLost))

    def _lost(self, worker: str, error: ray.exceptions.RayError) -> WorkerLost:
        """The process or its node is gone, or cannot be reached: a worker we are unsure of is ended."""
        place = self._actors[worker].place
        self.kill(worker)
        blameless = bool(getattr(error, "preempted", False))
        return WorkerLost(worker, f"{worker} ({place}) died: {_death_reason(error)}", str(error), blameless)

    def _forget(self, worker: str) -> _Actor:
        self._tasks = {ref: task for ref, task in self._tasks.items() if task.worker != worker}
        return self._actors.pop(worker)


def _death_reason(error: ray.exceptions.RayError) -> str:
    """The part of Ray's message about a dead actor that says why, on one line."""
    text = one_line(error)
    start = max(0, text.find("The actor is dead because"))
    return text[start:].partition(" Some common causes")[0]


def start_ray(config: RunConfig, address: str) -> None:
    """Connect this process to Ray: a fresh one on this machine (``local``) or the cluster at `address`."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    local: dict[str, Any] = {}
    if address == "local":
        needed = math.ceil(max(1, config.workers) * config.cpus_per_worker)
        local = {
            # More workers than cores is slow, but must not wait for ever.
            "num_cpus": max(os.cpu_count() or 1, needed),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **local)


def _actor_options(config: RunConfig) -> dict[str, Any]:
    threads = str(config.torch_threads)
    return {
        "num_cpus": config.cpus_per_worker,
        "num_gpus": config.gpus_per_worker,
        "max_restarts": 0,
        "max_task_retries": 0,
        # Read when the numerical libraries load, so they must be there before the runner is unpacked.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}},
    }
