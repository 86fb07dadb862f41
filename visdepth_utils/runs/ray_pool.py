"""A Ray to run on, joined or started, and the workers on it that this process holds."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray

from visdepth_utils.common.errors import first_line
from visdepth_utils.runs.engine import RayOptions, no_ray, ray_address, ray_options
from visdepth_utils.runs.ray_worker import Worker


def connect() -> None:
    """Join the Ray of RAY_ADDRESS, or start one on this machine.

    Raises:
        ValueError: If there is none at that address, it is of Ray's client protocol, none could be
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
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=debug,
            logging_level="INFO" if debug else "CRITICAL",
            **options,
        )
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

    Yields:
        Nothing. What was started here ends here.
    """
    before = os.environ.get("RAY_ADDRESS")
    connect()
    os.environ["RAY_ADDRESS"] = ray_address() or ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
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
    while _POOLS:
        pool = _POOLS.pop()
        for worker in list(pool.workers):
            pool.drop(worker)
