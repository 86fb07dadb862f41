"""Shards on a Ray cluster: workers hold the model, take one shard at a time, and may die.

The driver alone knows what is done: it hands out shards, writes the step cache and shows progress.
A worker that is lost with its process or node costs the shard it was in, and a new one takes its
place where the cluster has room. Ray's own retries are off, so that every attempt is counted here.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import ray
from ray import cloudpickle

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import describe
from visdepth_utils.runs import measuring_code
from visdepth_utils.runs.engine import Measure, Shard, ray_options
from visdepth_utils.runs.ray_pool import Pool, connect, pool_of

ATTEMPTS = 3
"""A shard that raises, or whose worker dies, is tried so often in all."""

SPARE_DEATHS = 6
"""So many workers more than there are at once may die one after the other with nothing done."""


def map_shards(
    name: str,
    shards: Iterator[Shard],
    fn: Measure,
    keep: Callable[[int, pd.DataFrame], Any],
    show: Progress,
    total: int,
) -> None:
    """Measure shards on the cluster; see ``engine.map_shards``.

    Raises:
        RuntimeError: Shards failed in every attempt (the others were kept), or no worker lives.
        ValueError: The workers could not load what they should measure.
    """
    connect()
    job = _Job(name, iter(shards), fn, keep, show, total, pool_of(ray_options()))
    job.run()


class _Job:
    """One step: its shards, who measures which, and what went wrong."""

    def __init__(
        self,
        name: str,
        shards: Iterator[Shard],
        fn: Measure,
        keep: Callable[[int, pd.DataFrame], Any],
        show: Progress,
        total: int,
        pool: Pool,
    ) -> None:
        self.name, self.shards, self.keep, self.pool = name, shards, keep, pool
        self.show, self.total, self.measured, self.passed = show, total, 0, 0
        self.function = (
            uuid.uuid4().hex,
            ray.put(cloudpickle.dumps(fn)),
            measuring_code.code_version(),
        )
        self.waiting: deque[Shard] = deque()  # pulled, or to be tried again
        self.running: dict[Any, tuple[Any, Shard | None]] = {}  # None: the worker loads
        self.free: list[Any] = []
        self.tries: Counter[int] = Counter()
        self.failed: dict[int, str] = {}
        self.deaths = 0
        self.idle_since, self.told = time.monotonic(), False

    def run(self) -> None:
        """Until every shard was kept or given up."""
        room = self.pool.room()
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
                + "; ".join(self.failed.values())
                + f"; the other {self.measured} are kept, a second run tries only these"
            )

    def _load(self, worker: Any) -> None:
        token, blob, version = self.function
        self.running[worker.load.remote(token, blob, version)] = (worker, None)

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
        if shard is None:
            return
        if error:
            self._again(shard, error)
            return
        self.keep(shard[0], frame)
        self.deaths = 0
        self.measured += 1
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
