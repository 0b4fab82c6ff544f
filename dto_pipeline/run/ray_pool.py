"""Workers as Ray actors: start, feed and end them. Decisions are in `run.loop`. Seconds.

Ray restarts no actor and no task: the driver counts deaths and replaces workers. Only shard numbers and receipts are
sent. A thread of every actor answers `report` again and again: which shard it has begun, and how many images are done.
By the pending answer the driver notices the death of an idle worker, and knows whether a dead worker had begun its
shard.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

import ray

from dto_pipeline.config import RunConfig
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.errors import DeviceLost, DtoError, one_line
from dto_pipeline.run.deaths import UNKNOWN, oom_kills
from dto_pipeline.run.lease import process_name
from dto_pipeline.run.loop import (
    Event,
    Runner,
    ShardDone,
    ShardProgress,
    ShardRaised,
    WorkerDraining,
    WorkerLost,
    WorkerPlaced,
    WorkerPool,
    WorkerReady,
)
from dto_pipeline.run.ray_start import gpus_per_worker, start_ray

_LOOK_S = 5.0  # how often a worker reports its progress [s]
_SENT_S = 0.05  # how long a worker waits until its report is sent before it begins a shard [s]
_COUNT_S = 10.0  # how long a machine has to answer whether it ended processes for lack of memory [s]
_DRAIN_POLL_S = 5.0  # how often Ray is asked which nodes are about to be taken away [s]
_MEMORY_MARKS = ("NODE_OUT_OF_MEMORY", "node running low on memory")  # in Ray's reason for an actor's death
_OWNER_DIED = "owner has died"  # in Ray's errors when the raylet of this process, the owner of all actors, is gone
_LOG = logging.getLogger(__name__)


class RayGone(DtoError):
    """The part of Ray that this process needs has died, and its workers with it. Shards that are done stay done."""


class _Worker:
    """The actor."""

    def __init__(self, runner: list[Any]) -> None:
        """`runner`: a reference, in a list so that Ray does not unpickle the runner yet, which would load PyTorch."""
        self._packed = runner[0]
        self._runner: Runner | None = None
        self._news = threading.Condition()
        self._begun, self._shard = 0, -1
        self._sent = threading.Event()

    def where(self) -> tuple[str, str, int]:
        """Process, Ray's id of its machine, and the machine's `deaths.oom_kills` until now."""
        return process_name(), ray.get_runtime_context().get_node_id(), oom_kills()

    def ping(self) -> None:
        """Warm up; the answer means that it can do shards."""
        self._runner = ray.get(self._packed)
        self._runner.warm_up()

    def run(self, shard: int, attempt: int, following: int | None) -> Receipt:
        with self._news:
            self._begun, self._shard = self._begun + 1, shard
            self._sent.clear()
            self._news.notify_all()
        self._sent.wait(_SENT_S)
        assert self._runner is not None
        return self._runner.run(shard, attempt, following)

    @ray.method(concurrency_group="report")
    def report(self, begun: int) -> tuple[int, int, int]:
        """Shards begun, the last of them, its images done; at once if `begun` has changed, else after a while."""
        with self._news:
            self._news.wait_for(lambda: self._begun != begun, _LOOK_S)
            self._sent.set()
            return self._begun, self._shard, getattr(self._runner, "images_done", 0)


@dataclass
class _Actor:
    """One worker, as known to the driver."""

    handle: Any
    place: str = "not started yet"  # host:pid once it has answered
    node: str = ""
    begun: int = 0  # shards it has begun, by its last report
    answered: int = 0  # shards it has finished or raised for
    oom_kills: int = UNKNOWN  # of its machine when it began
    draining: bool = False


@dataclass(frozen=True)
class _Task:
    """Meaning of a pending reference: a method of the actor, for ``run`` with its shard."""

    worker: str
    method: str
    shard: int = -1


class RayPool(WorkerPool):
    """Ray actors. Starts Ray, or uses the one this process is already connected to."""

    def __init__(self, runner: Runner, config: RunConfig, address: str = "local") -> None:
        """
        Args:
            runner: not warmed up; a copy is sent to every actor.
            address: ``local`` starts Ray here; ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT`` joins a cluster.

        Raises:
            ClusterUnreachable: no cluster answers there.
        """
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            start_ray(config, address)
        self._runner = ray.put(runner)
        threads = str(config.torch_threads)
        self._options: dict[str, Any] = {
            "num_cpus": config.cpus_per_worker,
            "num_gpus": gpus_per_worker(config, int(ray.cluster_resources().get("GPU", 0))),
            "max_restarts": 0,
            "max_task_retries": 0,
            # Read when the numerical libraries load, so they must be there before the runner is unpacked.
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}},
        }
        self._avoided: list[str] = []
        self._actors: dict[str, _Actor] = {}
        self._tasks: dict[Any, _Task] = {}  # in the order of submission
        self._started = 0
        self._asked_at = float("-inf")  # when Ray was asked last about draining nodes

    def start_worker(self) -> str:
        self._started += 1
        worker = f"worker-{self._started}"
        to_actor: Any = ray.remote  # its types do not know concurrency groups
        actor_class = to_actor(concurrency_groups={"report": 1})(_Worker)
        handle = actor_class.options(**self._options).remote([self._runner])
        self._actors[worker] = _Actor(handle)
        self._tasks[handle.where.remote()] = _Task(worker, "where")
        self._tasks[handle.ping.remote()] = _Task(worker, "ping")
        return worker

    def assign(self, worker: str, shard: int, attempt: int, following: int | None = None) -> None:
        reference = self._actors[worker].handle.run.remote(shard, attempt, following)
        self._tasks[reference] = _Task(worker, "run", shard)

    def wait(self, timeout_s: float) -> list[Event]:
        """Raises: RayGone if the connection to a cluster broke."""
        references = list(self._tasks)
        try:
            ray.wait(references, num_returns=1, timeout=timeout_s)
            # Everything that is ready, in the order of submission: answers of a worker come before its death. Progress
            # reports come last, because they fail with the worker too.
            arrived = set(ray.wait(references, num_returns=len(references), timeout=0)[0])
            heard = [reference for reference in references if reference in arrived]
            ordered = sorted(heard, key=lambda reference: self._tasks[reference].method == "report")
            events = [self._collect(ref) for ref in ordered if ref in self._tasks]
            return [*filter(None, events), *self._find_draining()]
        except ConnectionError as error:  # of Ray's client, behind ray://
            self._actors.clear()  # out of reach; the cluster ends them
            raise RayGone(f"the connection to Ray broke ({error}); start again: done stays done") from error

    def kill(self, worker: str) -> None:
        if worker in self._actors:  # a shard's failure and its worker's death may come in the same moment
            self._tasks = {ref: task for ref, task in self._tasks.items() if task.worker != worker}
            ray.kill(self._actors.pop(worker).handle, no_restart=True)

    def avoid_node(self, node: str) -> None:
        self._avoided.append(node)
        selector = {"ray.io/node-id": f"!in({','.join(self._avoided)})"}
        self._options = {**self._options, "label_selector": selector}

    def close(self) -> None:
        for worker in list(self._actors):
            self.kill(worker)
        if self._owns_ray:
            ray.shutdown()

    def _collect(self, reference: Any) -> Event | None:
        task = self._tasks.pop(reference)
        actor = self._actors[task.worker]
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause, detail = error.cause if isinstance(error.cause, BaseException) else error, str(error)
            if task.method != "run":  # while warming up: the worker is of no use
                self.kill(task.worker)
                return WorkerLost(task.worker, one_line(cause), detail, node=actor.node)
            actor.answered += 1
            return ShardRaised(task.worker, task.shard, one_line(cause), detail, isinstance(cause, DeviceLost))
        except ray.exceptions.RayError as error:
            return self._lost(task.worker, error)
        if task.method == "where":
            actor.place, actor.node, actor.oom_kills = answer
            return WorkerPlaced(task.worker, node=actor.node)
        if task.method == "run":
            actor.answered += 1
            return ShardDone(task.worker, task.shard, answer)
        if task.method == "report":
            actor.begun, shard, images = answer
        self._tasks[actor.handle.report.remote(actor.begun)] = _Task(
            task.worker, "report"
        )  # one question is always pending
        if task.method == "report":
            return ShardProgress(task.worker, shard, images) if actor.begun > actor.answered else None
        _LOG.info("%s is ready (%s)", task.worker, actor.place)
        return WorkerReady(task.worker, node=actor.node)

    def _find_draining(self) -> list[Event]:
        """Workers whose node is about to be taken away, each once. Ray has no public function for it."""
        now, nodes = self.now(), set()
        if now - self._asked_at >= _DRAIN_POLL_S:
            self._asked_at = now
            try:
                nodes = set(ray._private.state.state.get_draining_nodes())
            except (AttributeError, ray.exceptions.RayError, ConnectionError) as error:
                self._asked_at = float("inf")
                what = "this Ray does not list draining nodes (%s): workers on them are lost like others"
                _LOG.warning(what, one_line(error))
        found: list[Event] = []
        for worker, actor in self._actors.items():
            if actor.node in nodes and not actor.draining:
                actor.draining = True
                _LOG.warning("the node of %s (%s) is being drained: it gets no more shards", worker, actor.place)
                found.append(WorkerDraining(worker))
        return found

    def _lost(self, worker: str, error: ray.exceptions.RayError) -> WorkerLost:
        """Its process or node is gone or out of reach: end it. Raises: RayGone if Ray on this machine has died."""
        if _OWNER_DIED in str(error):
            self._actors.clear()  # all are gone
            raise RayGone("Ray has died on the driver's machine, and the workers with it; start again: done stays done")
        actor = self._actors[worker]
        self.kill(worker)
        blameless = bool(getattr(error, "preempted", False)) or actor.draining
        begun = actor.begun > actor.answered
        said = isinstance(error, ray.exceptions.OutOfMemoryError) or any(mark in str(error) for mark in _MEMORY_MARKS)
        memory = said or (not blameless and self._lacked_memory(actor))
        cause = "memory ran out on its machine: " if memory else ""
        text = one_line(error)
        why = text[max(0, text.find("The actor is dead because")) :].partition(" Some common causes")[0]
        reason = f"{worker} ({actor.place}) died: {cause}{why}"
        return WorkerLost(worker, reason, str(error), blameless, begun, memory, node=actor.node)

    def _lacked_memory(self, actor: _Actor) -> bool:
        """Whether the kernel has ended processes of an actor's machine for lack of memory since the actor started."""
        if not actor.node or actor.oom_kills == UNKNOWN:
            return False
        if actor.node == ray.get_runtime_context().get_node_id():
            return oom_kills() > actor.oom_kills
        there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(actor.node, soft=False)
        count: Any = ray.remote(oom_kills)
        try:
            asked = count.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote()
            return bool(ray.get(asked, timeout=_COUNT_S) > actor.oom_kills)
        except (ray.exceptions.RayError, TimeoutError):  # the machine is gone, or too busy to answer
            return False
