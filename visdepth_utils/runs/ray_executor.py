"""Shards on a Ray cluster: workers hold the model, take one shard at a time, and may die.

The driver joins or starts a Ray, holds its workers, hands out shards, writes the step cache and
shows progress; it alone knows what is done. A worker that is lost with its process or node costs
the shard it was in, and a new one takes its place where the cluster has room. Ray's own retries are
off, so that every attempt is counted here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import ray
from ray import cloudpickle

from visdepth_utils.common.errors import first_line
from visdepth_utils.common.files import environment
from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import describe
from visdepth_utils.runs import measuring_code
from visdepth_utils.runs.engine import Measure, RayOptions, Shard, no_ray, ray_address, ray_options
from visdepth_utils.runs.ray_worker import Worker


def connect() -> None:
    """Join the Ray of RAY_ADDRESS, or start one on this machine.

    ValueError if there is none at that address, it is of Ray's client protocol, none could be
    started, or this machine has less than one worker asks for.
    """
    if ray.is_initialized():
        return
    address = ray_address()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers do the run's own work; Ray's default puts them behind everything else (nice 15).
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # In a notebook Ray advises to install widgets; we show plain lines.
    logging.getLogger("ray.widgets").setLevel(logging.ERROR)
    debug = bool(os.environ.get("DEBUG"))
    options = {"log_to_driver": debug, "logging_level": "INFO" if debug else "CRITICAL"}
    options |= {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address or "local", **options)
    except Exception as error:  # Ray raises bare Exceptions, among others
        why = first_line(error)
        if address:
            raise ValueError(no_ray(address, why)) from error
        raise ValueError(
            f"Ray did not start on this machine ({why}): run it again when the machine is less "
            "busy, see /tmp/ray/session_latest/logs, or use ENGINE=local"
        ) from error
    if not address:
        _check_demand()


def _check_demand() -> None:
    """Refuse workers that a Ray of this machine alone can never start; they would be waited for."""
    options, has = ray_options(), ray.cluster_resources()
    for name, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        if (getattr(options, name) or 0) > has.get(kind, 0):
            ray.shutdown()
            raise ValueError(
                f"VISDEPTH_RAY asks for {name}={getattr(options, name):g} for each worker, this "
                f"machine has {has.get(kind, 0):g}: ask for less, or join a cluster by RAY_ADDRESS"
            )


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Hold a Ray for this process and those it starts, which find it by RAY_ADDRESS.

    What was started here ends here.
    """
    connect()
    try:
        with environment(RAY_ADDRESS=ray_address() or ray.get_runtime_context().gcs_address):
            yield
    finally:
        close_pool()
        ray.shutdown()


@dataclass
class Pool:
    """Workers of this process; they live as long as it does, because loading models takes long."""

    options: RayOptions
    workers: list[Any] = field(default_factory=list)

    def demand(self) -> dict[str, float]:
        """What one worker asks for."""
        gpus = self.options.num_gpus
        if gpus is None:
            import torch

            gpus = float(torch.cuda.is_available() and ray.cluster_resources().get("GPU", 0) >= 1)
        return {"num_cpus": self.options.num_cpus, "num_gpus": gpus}

    def room(self) -> int:
        """How many workers there may be at once."""
        if self.options.num_actors:
            return self.options.num_actors
        has, demand = ray.cluster_resources(), self.demand()
        fits = [
            has.get(kind, 0) // demand[name]
            for kind, name in (("CPU", "num_cpus"), ("GPU", "num_gpus"))
            if demand[name]
        ]
        return max(1, int(min(fits, default=1)))

    def start(self) -> Any:
        """Ask the cluster for one more worker."""
        demand = self.demand()
        # No restarts by Ray: a new worker may start on any node, and its start is seen here.
        cls = ray.remote(max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD")(Worker)
        worker = cls.options(**demand).remote(demand["num_cpus"], demand["num_gpus"])
        self.workers.append(worker)
        return worker

    def drop(self, worker: Any) -> None:
        """Forget a worker that died, and make sure that it did."""
        self.workers.remove(worker)
        with contextlib.suppress(Exception):
            ray.kill(worker)


_POOLS: list[Pool] = []
"""At most one: other options free the room of the workers before them."""


def pool_of(options: RayOptions) -> Pool:
    """The pool of this process."""
    if not _POOLS or _POOLS[0].options != options:
        close_pool()
        _POOLS.append(Pool(options))
    return _POOLS[0]


def close_pool() -> None:
    """End the workers of this process."""
    for pool in _POOLS:
        for worker in list(pool.workers):
            pool.drop(worker)
    _POOLS.clear()


ATTEMPTS = 3
"""A shard that raises, or whose worker dies, is tried so often in all."""

SPARE_DEATHS = 6
"""So many workers more than there are at once may die one after the other with nothing done."""


@dataclass
class Job:
    """One step, as ``executor.map_shards``: its shards, who measures which, what went wrong."""

    name: str
    shards: Iterator[Shard]
    fn: Measure
    keep: Callable[[int, pd.DataFrame], Any]
    show: Progress
    total: int
    waiting: deque[Shard] = field(default_factory=deque)  # pulled, or to be tried again
    running: dict[Any, tuple[Any, Shard | None]] = field(default_factory=dict)  # None: it loads
    free: list[Any] = field(default_factory=list)
    tries: Counter[int] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)
    measured: int = 0
    passed: int = 0
    deaths: int = 0
    told: bool = False

    def run(self) -> None:
        """Until every shard was kept or given up.

        RuntimeError: shards failed in every attempt (the others were kept), or no worker lives.
        ValueError: the workers could not load what they should measure.
        """
        connect()
        self.pool, self.idle_since = pool_of(ray_options()), time.monotonic()
        blob, version = ray.put(cloudpickle.dumps(self.fn)), measuring_code.code_version()
        self.function, room = (uuid.uuid4().hex, blob, version), self.pool.room()
        for worker in self.pool.workers:
            self._load(worker)
        while True:
            self._hand_out(room)
            if not self.waiting and not any(shard for _, shard in self.running.values()):
                break
            ready, _ = ray.wait(list(self.running), num_returns=1, timeout=1.0)
            if ready:
                self._take(ready[0])
            else:
                self._be_patient()
        if self.failed:
            raise RuntimeError(
                f"{self.name}: {len(self.failed)} shards failed {ATTEMPTS} times: "
                f"{'; '.join(self.failed.values())}; the other {self.measured} are kept, a second "
                "run tries only these"
            )

    def _load(self, worker: Any) -> None:
        self.running[worker.load.remote(*self.function)] = (worker, None)

    def _hand_out(self, room: int) -> None:
        """Give shards to free workers, and start workers for those that nobody will be free for."""
        while len(self.waiting) < room and (shard := next(self.shards, None)) is not None:
            self.waiting.append(shard)
        loading = sum(shard is None for _, shard in self.running.values())
        for _ in range(min(room - len(self.pool.workers), len(self.waiting) - loading)):
            self._load(self.pool.start())
        while self.free and self.waiting:
            worker, shard = self.free.pop(), self.waiting.popleft()
            self.running[worker.measure.remote(self.function[0], shard[1])] = (worker, shard)

    def _take(self, ref: Any) -> None:
        """See how a worker's task ended."""
        worker, shard = self.running.pop(ref)
        self.idle_since = time.monotonic()
        try:
            error, frame = ray.get(ref)
        except ray.exceptions.RayError as lost:
            self._lost(worker, shard, lost)
            return
        if shard is None and error:
            self.pool.drop(worker)
            raise ValueError(f"{self.name}: a worker cannot begin: {error}")
        self.free.append(worker)
        if shard and error:
            self._again(shard, error)
        elif shard:
            self.keep(shard[0], frame)
            self.deaths, self.measured = 0, self.measured + 1
            self.passed += len(shard[1])
            self.show(self.passed, self.total, self.name)

    def _lost(self, worker: Any, shard: Shard | None, error: Exception) -> None:
        """A process or node is gone; its shard goes to another worker."""
        self.pool.drop(worker)
        self.deaths += 1
        why = type(error).__name__
        if self.deaths > self.pool.room() + SPARE_DEATHS:
            raise RuntimeError(
                f"{self.name}: {self.deaths} workers died one after the other ({why}): see the "
                "logs of Ray in /tmp/ray/session_latest/logs; likely a worker needs more memory"
            ) from error
        what = f", {describe(shard[1])} will be measured again" if shard else ""
        print(f"{self.name}: a worker was lost ({why}){what}")
        if shard:
            self._again(shard, f"its worker died ({why})")

    def _again(self, shard: Shard, error: str) -> None:
        """Put a shard back, or give it up."""
        self.tries[shard[0]] += 1
        if self.tries[shard[0]] < ATTEMPTS:
            self.waiting.append(shard)
        else:
            self.failed[shard[0]] = f"{describe(shard[1])}: {error}"

    def _be_patient(self) -> None:
        """Say once why nothing happens when no worker finds room, and do not wait for ever."""
        if any(shard for _, shard in self.running.values()):
            self.idle_since = time.monotonic()
            return
        waited = time.monotonic() - self.idle_since
        asked = self.pool.demand()
        has = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
        text = f"a worker asks for {asked}, the cluster has {has} in all"
        if waited > self.pool.options.wait_s:
            raise RuntimeError(
                f"{self.name}: no worker could start in {waited:.0f} s: {text}; ask for less in "
                "VISDEPTH_RAY, add nodes, or wait for other runs to end"
            )
        if waited > 30 and not self.told:
            self.told = True
            print(f"{self.name}: waiting for room: {text}")
